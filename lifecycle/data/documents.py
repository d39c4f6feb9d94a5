"""Documents: the record that every step of the pipeline reads and writes, and its Parquet files.

`kept-*.parquet`, `heldout-*.parquet` and `removed-*.parquet` share one schema; a removed row also says at which step,
for which reason and on what evidence. The files are byte-equal for equal documents: fixed row groups, no timestamps.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.core.artifact import ArtifactError

Split = Literal["kept", "heldout", "removed"]
SPLITS: tuple[Split, ...] = ("kept", "heldout", "removed")

FILE_BYTES = 128 << 20  # text per Parquet file: large enough for few files, small enough to be one task of a cluster
ROW_GROUP = 1024  # documents that a reader holds at a time

COUNTS = (
    "word_count", "stop_word_count", "max_line_length", "pii_email", "pii_ip", "pii_phone", "pii_card",
)  # fmt: skip
SHARES = (
    "language_score", "mean_word_length", "symbol_to_word_ratio", "bullet_lines", "ellipsis_lines", "alphabetic_words",
    "duplicate_lines", "duplicate_line_chars", "duplicate_paragraphs", "duplicate_paragraph_chars",
    "top_2gram_chars", "top_3gram_chars", "top_4gram_chars", "duplicate_5gram_chars", "duplicate_6gram_chars",
    "duplicate_7gram_chars", "duplicate_8gram_chars", "duplicate_9gram_chars", "duplicate_10gram_chars",
    "mean_line_length", "alphanumeric_share",
)  # fmt: skip
_TEXTS = ("id", "text", "source", "path", "license", "format", "meta", "language", "step", "reason", "detail")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS[:8]]
    + [(name, pa.int64()) for name in COUNTS]
    + [(name, pa.float64()) for name in SHARES]
    + [(name, pa.string()) for name in _TEXTS[8:]]
)


_PART = re.compile(r"(\.(?:jsonl|ndjson|parquet)(?=:)|\.\w+(?=#))(?::\d+|#.*)\Z", re.DOTALL | re.IGNORECASE)


@dataclass(slots=True)
class Document:
    """One document on its way. `step` is set when a step removes it: then `reason` and `detail` say why."""

    text: str
    source: str
    path: str  # below the source's folder; `file#key` or `file:line` for a part of a file: see `file_of`
    license: str
    format: str
    meta: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    language: str = ""
    scores: dict[str, float] = field(default_factory=dict)  # names of COUNTS and SHARES
    edits: dict[str, int] = field(default_factory=dict)  # what normalising and masking changed, for the funnel
    is_heldout: bool = False
    step: str | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())

    def remove(self, step: str, reason: str, detail: str) -> None:
        """Marks the document as removed; the first step to do so counts."""
        if self.step is None:
            self.step, self.reason, self.detail = step, reason, detail


def file_of(path: str) -> str:
    """The file of a document's path, without the key or the line of its part."""
    return _PART.sub(r"\1", path)


def write_documents(folder: Path, split: Split, documents: Sequence[Document]) -> None:
    """Writes `split-00000.parquet` and so on, in the order given; an empty split is one file with the schema."""
    for number, part in enumerate(_parts(documents)):
        columns = {
            name: pa.array([_value(document, name) for document in part], type=kind)
            for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
        }
        table = pa.table(columns, schema=SCHEMA)
        pq.write_table(table, folder / f"{split}-{number:05d}.parquet", compression="zstd", row_group_size=ROW_GROUP)


def read_documents(folder: Path, split: Split, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split in their order, as dicts of `columns` (all when None); holds one row group at a time.

    `meta` is a JSON string. Raises `ArtifactError` when the folder holds no file of the split.
    """
    for path in document_files(folder, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=None if columns is None else list(columns)):
                yield from batch.to_pylist()


def document_files(folder: Path, split: Split) -> list[Path]:
    """The Parquet files of a split, in order."""
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise ArtifactError(f"{folder}: no {split}-*.parquet here; run the data stage, which writes it")
    return files


def _parts(documents: Sequence[Document]) -> Iterator[list[Document]]:
    part: list[Document] = []
    size = 0
    for document in documents:
        if part and size + document.num_bytes > FILE_BYTES:
            yield part
            part, size = [], 0
        part.append(document)
        size += document.num_bytes
    yield part


def _value(document: Document, name: str) -> Any:
    if name == "meta":
        return json.dumps(document.meta, sort_keys=True)  # ASCII: rows may hold lone surrogates, Parquet cannot
    if name in _TEXTS:
        return getattr(document, name)
    return document.scores.get(name)
