"""The document pipeline: tagged documents -> kept, held-out and removed ones, with a funnel that accounts for each.

Rules over columns decide first, document by document; deduplication, the held-out split and decontamination look at
all documents that are left. The order matters twice: near-duplicates are removed before the split, so that none
straddles it, and decontamination comes last, when the held-out documents are known.
What must hold: same tagged documents, settings and seed, same bytes out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.decontaminate import decontaminate, eval_items, heldout_items
from lifecycle.data.dedup import deduplicate
from lifecycle.data.documents import DocumentWriter, Split, read_tagged, text_bytes
from lifecycle.data.filters import document_steps
from lifecycle.data.funnel import build_funnel, require_training_text
from lifecycle.data.selection import kept_documents, remaining, removed_documents, select
from lifecycle.data.split import heldout_flags
from lifecycle.data.tagging import Reading, read_reading

LISTED = 50  # skipped files named in the stats; funnel.json names all


def prepare_documents(
    tagging: Path, config: DataConfig, out: Path, progress: Progress, seed: int, eval_rows: Sequence[Path] = ()
) -> dict[str, Any]:
    """Writes `kept-*`, `heldout-*` and `removed-*.parquet` and `funnel.json` into `out`; returns their summary.

    `tagging` is the folder that `tag_documents` wrote. `eval_rows` are JSONL and Parquet files whose texts must not be
    in the training documents. Raises `ConfigError` if no training document is left, naming the steps and settings
    that removed them.
    """
    test_rows = eval_items(eval_rows)
    reading, documents, steps = read_reading(tagging), read_tagged(tagging), document_steps(config)
    removals = select(documents, steps)
    kept = remaining(documents, removals)
    if len(kept):
        progress.note(f"looking for duplicates among {len(kept)} documents")
        removals = pa.concat_tables([removals, deduplicate(kept, config.dedup.jaccard)])
        kept = remaining(kept, removals)
    if not len(kept):
        removed = removed_documents(documents, removals)
        require_training_text(build_funnel(documents, removed, kept, reading, steps), steps)
    is_heldout = heldout_flags(kept, config.heldout_fraction, seed)
    heldout, training = kept.filter(is_heldout), kept.filter(~is_heldout)
    progress.note(
        f"comparing {len(training)} training documents with {len(heldout)} held-out ones and {len(test_rows)} rows"
    )
    overlaps, too_short = decontaminate(training, heldout_items(heldout) + test_rows, config.decontamination)
    removed = removed_documents(documents, pa.concat_tables([removals, overlaps]))
    funnel = build_funnel(documents, removed, heldout, reading, steps)
    require_training_text(funnel, steps)
    parts: dict[Split, pa.Table] = {
        "kept": kept_documents(remaining(training, overlaps)), "heldout": kept_documents(heldout), "removed": removed,
    }  # fmt: skip
    for split, part in parts.items():
        _write(out, split, part)
    _write_funnel(out / "funnel.json", funnel, reading)
    return _stats(parts, funnel, reading, config) | {"items_too_short_to_compare": too_short}


def _write(out: Path, split: Split, documents: pa.Table) -> None:
    columns = documents.drop_columns("ordinal")
    with DocumentWriter(out, split, columns.schema) as writer:
        writer.write(columns)


def _write_funnel(path: Path, funnel: Sequence[dict[str, Any]], reading: Reading) -> None:
    skipped = [asdict(entry) for entry in reading.skipped]
    write_text(path, json.dumps({"steps": list(funnel), "skipped": skipped}, indent=1) + "\n")


def _stats(
    parts: Mapping[Split, pa.Table], funnel: Sequence[dict[str, Any]], reading: Reading, config: DataConfig
) -> dict[str, Any]:
    kept = parts["kept"]
    return {
        "train": _size(kept), "heldout": _size(parts["heldout"]), "removed": _size(parts["removed"]),
        "sources": {
            source.name: {"license": source.license, **_size(kept.filter(kept["source"].to_numpy() == source.name))}
            for source in config.sources
        },
        "funnel": [{key: value for key, value in entry.items() if key != "samples"} for entry in funnel],
        "skipped": len(reading.skipped),
        "skipped_files": [f"{s.source}:{s.path}: {s.reason}: {s.detail}" for s in reading.skipped[:LISTED]],
    }  # fmt: skip


def _size(documents: pa.Table) -> dict[str, int]:
    return {"documents": len(documents), "bytes": int(text_bytes(documents).sum())}
