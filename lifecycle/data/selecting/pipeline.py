"""The document pipeline: tagged documents -> kept, held-out and removed ones, with a funnel that accounts for each.

Rules over columns decide first, document by document; deduplication, the held-out split and decontamination look at
all documents that are left. The order matters twice: near-duplicates are removed, and passages that repeat are cut,
before the split, so that none straddles it, and decontamination comes last, when the held-out documents are known.
What must hold: same tagged documents, settings and seed, same bytes out. Documents pass by a row group at a time; what
stays in memory is a few numbers for each, and the reason of each that a comparison removes.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.files import remove_folders, write_text
from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import spending
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import Flags, Stretch, num_documents, pieces_of, require_columns, tagged_documents
from lifecycle.data.measures.filters import document_steps, joined_steps
from lifecycle.data.measures.steps import DocumentStep
from lifecycle.data.selecting.contaminated_passages import cut_contaminated
from lifecycle.data.selecting.contamination import contamination, note_cuts
from lifecycle.data.selecting.cuts import CutStretch
from lifecycle.data.selecting.cutting import cut_repeats
from lifecycle.data.selecting.daft_process import DaftProcess
from lifecycle.data.selecting.decontaminate import STEP as DECONTAMINATION
from lifecycle.data.selecting.decontaminate import decontaminate
from lifecycle.data.selecting.dedup import deduplicate
from lifecycle.data.selecting.earlier import SIGNATURE, EarlierCorpus, Pool, signature_of
from lifecycle.data.selecting.eval_items import TestItem, heldout_items, task_items
from lifecycle.data.selecting.funnel import HELDOUT_SPLIT, require_every_document, require_training_text
from lifecycle.data.selecting.preference import ranks
from lifecycle.data.selecting.selection import REMOVALS, joined, select
from lifecycle.data.selecting.split import heldout_flags, split_positions
from lifecycle.data.selecting.writing import Selection, Written, write_documents
from lifecycle.data.tagging.engine import Engine, engine_of, ordered_results
from lifecycle.data.tagging.partitions import tagged_schema
from lifecycle.data.tagging.tagging import Reading, read_reading

LARGE = ("text", "meta")  # columns that no rule reads
RULES, WRITE = "rules", "write"  # what documents cost before and after the steps that compare them
LISTED = 50  # skipped files named in the stats; funnel.json names all


def prepare_documents(
    tagging: Path, config: DataConfig, out: Path, progress: Progress, seed: int,
    eval_rows: Mapping[str, Sequence[Path]] | None = None, earlier: Sequence[EarlierCorpus] = (),
) -> dict[str, Any]:  # fmt: skip
    """Writes `kept-*`, `heldout-*` and `removed-*.parquet`, `funnel.json` and `contamination.parquet` into `out`;
    returns their summary.

    `tagging` is the folder that `tag_documents` wrote. `eval_rows` are, by task, JSONL and Parquet files whose texts
    must not be in the training documents; `earlier`: corpora whose documents must not be in the new one. Raises
    `ConfigError` if no training document is left, naming the steps and settings that removed them.
    """
    remove_folders(out)
    rows = task_items(eval_rows or {})
    reading, stretches, steps = read_reading(tagging), tagged_documents(tagging), document_steps(config)
    cut = [CutStretch.of(stretch) for stretch in stretches]
    schema = tagged_schema(config)
    require_columns(stretches, schema)
    items, too_short, overlapping = rows, np.zeros(len(rows), bool), np.zeros(0, np.int64)
    with (
        tempfile.TemporaryDirectory(prefix="cuts-", dir=out) as name,
        engine_of(config, reading.num_bytes) as engine, DaftProcess(engine.address) as daft,
    ):  # fmt: skip
        folder = Path(name)
        with spending(RULES, cpu_seconds):
            chosen = _chosen(stretches, config, [name for name in schema.names if name not in LARGE], engine, progress)
        removed, is_heldout = REMOVALS.empty_table(), np.zeros_like(chosen)
        if chosen.any():
            progress.note(f"looking for duplicates among {chosen.sum():,} documents")
            pool = Pool.of(stretches, ranks(stretches, config), earlier)
            removed = deduplicate(pool, chosen, config.dedup, engine, daft, out, progress)
            chosen[removed["ordinal"].to_numpy()] = False
            cut, repeated = cut_repeats(cut, chosen, config.dedup, engine, folder, progress)
            chosen[repeated["ordinal"].to_numpy()] = False
            with spending(HELDOUT_SPLIT, cpu_seconds):
                is_heldout = _heldout(cut, chosen, config, seed)
            progress.note(
                f"comparing {(chosen & ~is_heldout).sum():,} training documents with {is_heldout.sum():,} held-out ones"
                f" and {len(rows):,} texts of evaluation rows"
            )
            with spending(DECONTAMINATION, cpu_seconds):
                items = [*heldout_items(_documents(cut, is_heldout, engine, progress)), *rows]
                found = _without_items(cut, chosen & ~is_heldout, items, config, engine, out, folder, progress)
            cut, overlaps, too_short, overlapping = found
            removed = pa.concat_tables([removed, repeated, overlaps]).sort_by("ordinal").combine_chunks()
        with spending(WRITE, cpu_seconds):
            written = write_documents(Selection(cut, removed, is_heldout), config, engine, out, progress)
    return _summary(written, reading, steps, num_documents(stretches), config, out, progress) | {
        "items_too_short_to_compare": int(too_short.sum()), SIGNATURE: signature_of(config.dedup),
        "contamination": contamination(out, items, too_short, overlapping),
    }  # fmt: skip


def _chosen(
    stretches: Sequence[Stretch], config: DataConfig, columns: Sequence[str], engine: Engine, progress: Progress
) -> Flags:
    """Whether each document passes all rules, which read these columns and those that are joined."""
    chosen = np.ones(num_documents(stretches), bool)
    work = [(piece, config, columns) for piece in pieces_of(stretches, chosen)]
    for failed in ordered_results(engine, _failing, work, progress, "rules"):
        chosen[failed] = False
    return chosen


def _failing(work: tuple[Sequence[tuple[Stretch, Flags]], DataConfig, Sequence[str]]) -> NDArray[np.int64]:
    """The ordinals of the documents of some stretches that fail a rule; in worker processes."""
    parts, config, columns = work
    steps, joins = document_steps(config), joined_steps(config)
    failing = [select(joined(stretch.read(columns), joins), steps)["ordinal"] for stretch, _ in parts]
    return np.unique(np.concatenate([ordinals.to_numpy() for ordinals in failing]))


def _heldout(stretches: Sequence[Stretch], chosen: Flags, config: DataConfig, seed: int) -> Flags:
    """Whether each document is held out, of those chosen."""
    numbers = {source.name: number for number, source in enumerate(config.sources)}
    contents, sources, sizes = [], [], []
    for stretch in stretches:
        own = stretch.read(["content", "source", "text_bytes"]).filter(pa.array(chosen[stretch.first : stretch.end]))
        contents.append(np.frombuffer(b"".join(own["content"].to_pylist()), np.uint64)[::2])
        sources.append(np.array([numbers[name] for name in own["source"].to_pylist()], np.int64))
        sizes.append(own["text_bytes"].to_numpy())
    positions = split_positions(np.concatenate(contents), seed)
    flags = np.zeros_like(chosen)
    flags[chosen] = heldout_flags(
        positions, np.concatenate(sources), np.concatenate(sizes), config.heldout_fraction, config.heldout_bytes
    )
    return flags


def _documents(stretches: Sequence[Stretch], chosen: Flags, engine: Engine, progress: Progress) -> pa.Table:
    """The names and texts of the chosen documents."""
    pieces = [piece for piece in pieces_of(stretches, chosen) if any(flags.any() for _, flags in piece)]
    return pa.concat_tables(ordered_results(engine, _texts, pieces, progress, "held-out documents"))


def _texts(parts: Sequence[tuple[Stretch, Flags]]) -> pa.Table:
    """The same of some stretches; in worker processes."""
    columns = ("source", "path", "text")
    return pa.concat_tables(stretch.read(columns).filter(pa.array(flags)) for stretch, flags in parts if flags.any())


def _without_items(
    stretches: Sequence[CutStretch], chosen: Flags, items: Sequence[TestItem], config: DataConfig, engine: Engine,
    out: Path, cuts: Path, progress: Progress,
) -> tuple[Sequence[CutStretch], pa.Table, Flags, NDArray[np.int64]]:  # fmt: skip
    """The stretches without what the chosen documents have of test items, if that is cut; the removals of documents;
    whether each item is too short to compare; the documents that overlap one. The index of the items, the largest thing
    that this process has in memory, ends with the call."""
    overlaps, index = decontaminate(stretches, chosen, items, config.decontamination, engine, out, progress)
    overlapping = overlaps["ordinal"].to_numpy()
    if config.decontamination.action == "cut":
        stretches, overlaps = cut_contaminated(stretches, overlaps, index.live_lookup(), engine, cuts, progress)
        note_cuts(out, np.setdiff1d(overlapping, overlaps["ordinal"].to_numpy()), cuts)
    return stretches, overlaps, index.too_short, overlapping


def _summary(
    written: Written, reading: Reading, steps: Sequence[DocumentStep], num_tagged: int, config: DataConfig, out: Path,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Writes the funnel; returns the summary of what was written."""
    for name, count in written.num_scoreless.items():
        progress.note(f"{count:,} of {num_tagged:,} documents have no {name} and pass its limits")
    entries = written.funnel.entries(reading)
    sizes, of_sources = written.sizes, written.of_sources
    require_every_document(entries, num_tagged, sizes)
    require_training_text(entries, steps)
    _write_funnel(out / "funnel.json", entries, reading)
    return {
        "train": _sized(sizes["kept"]), "heldout": _sized(sizes["heldout"]), "removed": _sized(sizes["removed"]),
        "sources": {
            source.name: {"license": source.license, **_sized(of_sources.get(source.name, Counter()))}
            for source in config.sources
        },
        "funnel": [{key: value for key, value in entry.items() if key != "samples"} for entry in entries],
        **({"without_score": dict(written.num_scoreless)} if written.num_scoreless else {}),
        "skipped": len(reading.skipped),
        "skipped_files": [f"{s.source}:{s.path}: {s.reason}: {s.detail}" for s in reading.skipped[:LISTED]],
    }  # fmt: skip


def _write_funnel(path: Path, funnel: Sequence[dict[str, Any]], reading: Reading) -> None:
    skipped = [asdict(entry) for entry in reading.skipped]
    write_text(path, json.dumps({"steps": list(funnel), "skipped": skipped}, indent=1) + "\n")


def _sized(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("documents", "bytes")}
