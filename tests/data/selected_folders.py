"""Small artifacts of stage `documents` for tests, in files and row groups of a few documents each."""

import hashlib
from collections.abc import Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.documents import SPLITS
from lifecycle.data.selecting.cuts import CUTS

_REASON = pa.struct([("step", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
COLUMNS = pa.schema([
    ("text", pa.string()), ("source", pa.string()), ("path", pa.string()), ("license", pa.string()),
    ("language", pa.string()), ("word_count", pa.int64()), ("share", pa.float64()), ("pii_email", pa.int64()),
    ("id", pa.string()), ("content", pa.binary(16)), ("address", pa.binary(16)), ("text_bytes", pa.int64()),
    ("step", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("reasons", pa.list_(_REASON)), CUTS,
])  # fmt: skip


def document(text: str, *reasons: tuple[str, str, str], split: str = "kept", source: str = "s", **columns: Any) -> dict:
    """A row and its split: removed if there are reasons, (step, reason, detail) each."""
    first = dict(zip(_REASON.names, reasons[0], strict=True)) if reasons else dict.fromkeys(_REASON.names)
    return {
        "split": "removed" if reasons else split,
        "text": text, "source": source, "path": f"{text[:20]}.txt", "license": "CC0", "language": "en",
        "word_count": len(text.split()), "share": None, "pii_email": 0, "text_bytes": len(text.encode()),
        "id": hashlib.blake2b(f"{source}\0{text}".encode(), digest_size=16).hexdigest(), **first,
        "reasons": [dict(zip(_REASON.names, reason, strict=True)) for reason in reasons] or None, "cuts": None,
        **columns,
    }  # fmt: skip


def write_folder(folder: Path, rows: Sequence[dict], per_group: int = 2, per_file: int = 5) -> Path:
    """Writes documents into the files of their splits; returns the folder."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        for number, some in enumerate(batched(own, per_file) if own else [()]):
            table = pa.Table.from_pylist(list(some), schema=COLUMNS)
            pq.write_table(table, folder / f"{split}-{number:05d}.parquet", row_group_size=per_group)
    return folder
