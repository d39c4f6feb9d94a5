"""The document pipeline: sources -> kept, held-out and removed documents, with a funnel that accounts for each.

Read, normalise, language, quality and personal data are map steps over files, in worker processes; duplicates, the
held-out split and decontamination look at all documents. The order matters twice: near-duplicates go before the split,
so that none straddles it, and decontamination comes last, when it is known what is held out.
What must hold: same sources, settings and seed, same bytes out, whatever the number of workers.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import write_text
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.decontaminate import decontaminate, eval_items, heldout_items
from lifecycle.data.dedup import deduplicate
from lifecycle.data.documents import SPLITS, Document, write_documents
from lifecycle.data.extract import Skipped
from lifecycle.data.funnel import build_funnel, require_training_text
from lifecycle.data.sources import SourceFile, list_files
from lifecycle.data.split import heldout_flags
from lifecycle.data.tagging import batches_of, file_size, tag_files
from lifecycle.data.workers import map_in_workers

POOL_BYTES = 3_000_000  # below it, starting worker processes takes longer than the work (0.6 s each, 1 MB/s)
LISTED = 50  # skipped files named in the stats; funnel.json names all


def prepare_documents(
    config: DataConfig, out: Path, progress: Progress, seed: int, eval_rows: Sequence[Path] = ()
) -> dict[str, Any]:
    """Writes `kept-*`, `heldout-*` and `removed-*.parquet` and `funnel.json` into `out`; returns their summary.

    `eval_rows` are JSONL and Parquet files whose texts must not be in the training documents. Raises `ConfigError` when
    a source cannot be used or no training document is left, naming the steps and settings that took them.
    """
    test_rows = eval_items(eval_rows)
    files = list_files(config)
    file_bytes = sum(map(file_size, files))
    documents, skipped = _tag(config, files, file_bytes, progress)
    _refuse_useless_files(skipped)
    kept = _alive(documents)
    if kept:
        progress.note(f"looking for duplicates among {len(kept)} documents")
        deduplicate(kept, config.dedup.jaccard)
        kept = _alive(kept)
    require_training_text(build_funnel(documents, skipped, len(files), file_bytes))
    for document, flag in zip(kept, heldout_flags(kept, config.heldout_fraction, seed), strict=True):
        document.is_heldout = flag
    heldout = [document for document in kept if document.is_heldout]
    training = [document for document in kept if not document.is_heldout]
    progress.note(
        f"comparing {len(training)} training documents with {len(heldout)} held-out ones and {len(test_rows)} rows"
    )
    too_short = decontaminate(training, heldout_items(heldout) + test_rows, config.decontamination)
    steps = build_funnel(documents, skipped, len(files), file_bytes)
    require_training_text(steps)
    parts = {
        "kept": _alive(training), "heldout": heldout,
        "removed": [document for document in documents if document.step is not None],
    }  # fmt: skip
    for split in SPLITS:
        write_documents(out, split, parts[split])
    _write_funnel(out / "funnel.json", steps, skipped)
    return _stats(parts, steps, skipped, config) | {"items_too_short_to_compare": too_short}


def _tag(
    config: DataConfig, files: Sequence[SourceFile], file_bytes: int, progress: Progress
) -> tuple[list[Document], list[Skipped]]:
    workers = config.workers or (available_cores() if file_bytes > POOL_BYTES else 1)
    batches = list(batches_of(files, config))
    documents: list[Document] = []
    skipped: list[Skipped] = []
    progress.start("documents", total=len(files))
    done = 0
    for batch, (found, unused) in zip(batches, map_in_workers(tag_files, batches, workers), strict=True):
        documents += found
        skipped += unused
        done += len(batch.files)
        progress.update(done, documents=len(documents), skipped=len(skipped))
    return documents, skipped


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _refuse_useless_files(skipped: Sequence[Skipped]) -> None:
    """A file of rows none of which is usable is a mistake in the configuration, not noise in the data."""
    for entry in skipped:
        if entry.reason == "no_usable_row":
            rows = [s for s in skipped if s.source == entry.source and s.path.startswith(f"{entry.path}:")]
            first = f"; first: {rows[0].path}: {rows[0].detail}" if rows else ""
            raise ConfigError(
                f"source {entry.source!r}: {entry.path}: {entry.detail}{first}; "
                "correct the file, or text_column of the source, or exclude it"
            )


def _alive(documents: Sequence[Document]) -> list[Document]:
    return [document for document in documents if document.step is None]


def _write_funnel(path: Path, steps: Sequence[dict[str, Any]], skipped: Sequence[Skipped]) -> None:
    listed = [{"source": s.source, "path": s.path, "reason": s.reason, "detail": s.detail} for s in skipped]
    write_text(path, json.dumps({"steps": list(steps), "skipped": listed}, indent=1) + "\n")


def _stats(
    parts: dict[str, list[Document]], steps: Sequence[dict[str, Any]], skipped: Sequence[Skipped], config: DataConfig
) -> dict[str, Any]:
    names = {"kept": "train", "heldout": "heldout", "removed": "removed"}
    return {
        **{names[split]: _size(documents) for split, documents in parts.items()},
        "sources": {
            source.name: {"license": source.license, **_size([d for d in parts["kept"] if d.source == source.name])}
            for source in config.sources
        },
        "funnel": [{key: value for key, value in step.items() if key != "samples"} for step in steps],
        "skipped": len(skipped),
        "skipped_files": [f"{s.source}:{s.path}: {s.reason}: {s.detail}" for s in skipped[:LISTED]],
    }


def _size(documents: Sequence[Document]) -> dict[str, int]:
    return {"documents": len(documents), "bytes": sum(document.num_bytes for document in documents)}
