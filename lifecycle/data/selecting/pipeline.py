"""The document pipeline: tagged documents -> kept, held-out and removed ones, with a funnel that accounts for each.

Rules over columns decide first, document by document; deduplication, the held-out split and decontamination look at
all documents that are left. The order matters twice: near-duplicates are removed, and passages that repeat are cut,
before the split, so that none straddles it, and decontamination comes last, when the held-out documents are known.
What must hold: same tagged documents, settings and seed, same bytes out. Documents pass by a row group at a time; what
stays in memory is a few numbers for each, and the reason of each that a comparison removes.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import (
    PIECE,
    SPLITS,
    DocumentWriter,
    Split,
    Stretch,
    num_documents,
    read_ahead,
    require_columns,
    tagged_documents,
)
from lifecycle.data.measures.filters import document_steps, joined_steps
from lifecycle.data.measures.steps import DocumentStep, MapStep
from lifecycle.data.selecting.contaminated_passages import cut_contaminated
from lifecycle.data.selecting.contamination import contamination
from lifecycle.data.selecting.cut_sizes import cut_sizes
from lifecycle.data.selecting.cuts import CUTS, CutStretch, with_passages, without_cuts
from lifecycle.data.selecting.cutting import cut_repeats, cutting_steps
from lifecycle.data.selecting.decontaminate import decontaminate
from lifecycle.data.selecting.dedup import deduplicate
from lifecycle.data.selecting.earlier import SIGNATURE, EarlierCorpus, Pool, signature_of
from lifecycle.data.selecting.eval_items import heldout_items, task_items
from lifecycle.data.selecting.funnel import Funnel, require_training_text
from lifecycle.data.selecting.preference import ranks
from lifecycle.data.selecting.selection import (
    REMOVALS,
    VERDICT,
    joined,
    kept_documents,
    remaining,
    removals_within,
    removed_documents,
    select,
)
from lifecycle.data.selecting.split import heldout_flags, split_positions
from lifecycle.data.tagging.engine import engine_of
from lifecycle.data.tagging.partitions import tagged_schema
from lifecycle.data.tagging.tagging import Reading, read_reading

LARGE = ("text", "meta")  # columns that no rule reads
LISTED = 50  # skipped files named in the stats; funnel.json names all


type Flags = NDArray[np.bool_]  # one for each tagged document


@dataclass(frozen=True)
class Selection:
    """What becomes of the tagged documents: the removals by comparison, sorted by ordinal, and who is held out."""

    stretches: Sequence[CutStretch]
    steps: Sequence[DocumentStep]
    joins: Sequence[MapStep]
    removed: pa.Table
    is_heldout: Flags

    def parts(self, funnel: Funnel) -> Iterator[dict[Split, pa.Table]]:
        """The documents, split, a row group at a time, with the columns of `VERDICT`; the funnel counts them."""
        for stretch, tagged in zip(self.stretches, read_ahead(CutStretch.tagged, self.stretches), strict=True):
            documents = joined(tagged, self.joins)
            compared = removals_within(self.removed, stretch.first, stretch.end)
            removals = pa.concat_tables([select(documents, self.steps), compared])
            removed = removed_documents(documents, removals)
            left = without_cuts(remaining(documents, removals), stretch)
            flags = self.is_heldout[left["ordinal"].to_numpy()]
            heldout, training = left.filter(pa.array(flags)), left.filter(pa.array(~flags))
            funnel.add(documents, removed, heldout, cut_sizes(stretch, documents))
            yield {
                "kept": with_passages(kept_documents(training), documents, stretch),
                "heldout": with_passages(kept_documents(heldout), documents, stretch),
                "removed": with_passages(removed, documents, stretch),
            }


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
    for leftover in filter(Path.is_dir, out.iterdir()):  # of a killed run: what comparisons keep in files
        shutil.rmtree(leftover)
    rows = task_items(eval_rows or {})
    reading, stretches, steps = read_reading(tagging), tagged_documents(tagging), document_steps(config)
    cut = [CutStretch.of(stretch) for stretch in stretches]
    schema = tagged_schema(config)
    require_columns(stretches, schema)
    joins = joined_steps(config)
    chosen = _chosen(stretches, steps, joins, [name for name in schema.names if name not in LARGE])
    removed, is_heldout = REMOVALS.empty_table(), np.zeros_like(chosen)
    items, too_short, overlapping = rows, np.zeros(len(rows), bool), np.zeros(0, np.int64)
    with tempfile.TemporaryDirectory(prefix="cuts-", dir=out) as name, engine_of(config, reading.num_bytes) as engine:
        folder = Path(name)
        if chosen.any():
            if len(stretches) > PIECE:
                engine.start()
            progress.note(f"looking for duplicates among {chosen.sum():,} documents")
            pool = Pool.of(stretches, ranks(stretches, config), earlier)
            removed = deduplicate(pool, chosen, config.dedup, engine, out, progress)
            chosen[removed["ordinal"].to_numpy()] = False
            cut, repeated = cut_repeats(cut, chosen, config.dedup, engine, folder, progress)
            chosen[repeated["ordinal"].to_numpy()] = False
            is_heldout = _heldout(cut, chosen, config, seed)
            progress.note(
                f"comparing {(chosen & ~is_heldout).sum():,} training documents with {is_heldout.sum():,} held-out ones"
                f" and {len(rows):,} texts of evaluation rows"
            )
            items = [*heldout_items(_documents(cut, is_heldout)), *rows]
            overlaps, index = decontaminate(
                cut, chosen & ~is_heldout, items, config.decontamination, engine, out, progress
            )
            too_short, overlapping = index.too_short, overlaps["ordinal"].to_numpy()
            if config.decontamination.action == "cut":
                cut, overlaps = cut_contaminated(cut, overlaps, index.live_lookup(), engine, folder, progress)
            removed = pa.concat_tables([removed, repeated, overlaps]).sort_by("ordinal").combine_chunks()
        stats = _write(Selection(cut, steps, joins, removed, is_heldout), reading, config, out, progress)
    return stats | {
        "items_too_short_to_compare": int(too_short.sum()), SIGNATURE: signature_of(config.dedup),
        "contamination": contamination(out, items, too_short, overlapping),
    }  # fmt: skip


def _chosen(
    stretches: Sequence[Stretch], steps: Sequence[DocumentStep], joins: Sequence[MapStep], columns: Sequence[str]
) -> Flags:
    """Whether each document passes all rules, which read these columns and those that are joined."""
    chosen = np.ones(num_documents(stretches), bool)
    for stretch in stretches:
        chosen[select(joined(stretch.read(columns), joins), steps)["ordinal"].to_numpy()] = False
    return chosen


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


def _documents(stretches: Sequence[Stretch], chosen: Flags) -> pa.Table:
    """The names and texts of the chosen documents."""
    columns = ("source", "path", "text")
    return pa.concat_tables(
        stretch.read(columns).filter(pa.array(own))
        for stretch in stretches
        if (own := chosen[stretch.first : stretch.end]).any()
    )


def _write(selection: Selection, reading: Reading, config: DataConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Writes all documents and the funnel; returns their summary."""
    funnel = Funnel(selection.steps, cutting_steps(config.dedup))
    sizes: dict[Split, Counter[str]] = {split: Counter() for split in SPLITS}
    of_sources: dict[str, Counter[str]] = {source.name: Counter() for source in config.sources}
    scores = [column for step in selection.joins for column in step.columns]
    schema = pa.schema([*tagged_schema(config), *scores, *VERDICT, CUTS])
    num_scoreless: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {split: stack.enter_context(DocumentWriter(out, split, schema)) for split in SPLITS}
        progress.start("writing documents", len(selection.stretches))
        for number, parts in enumerate(selection.parts(funnel)):
            progress.update(number)
            for split, documents in parts.items():
                writers[split].write(documents.drop_columns("ordinal"))
                sizes[split].update(_size(documents))
                num_scoreless.update({column.name: documents[column.name].null_count for column in scores})
            for name, counts in of_sources.items():
                counts.update(_size(parts["kept"].filter(parts["kept"]["source"].to_numpy() == name)))
    for name, count in num_scoreless.items():
        progress.note(
            f"{count:,} of {num_documents(selection.stretches):,} documents have no {name} and pass its limits"
        )
    entries = funnel.entries(reading)
    require_training_text(entries, selection.steps)
    _write_funnel(out / "funnel.json", entries, reading)
    return {
        "train": _sized(sizes["kept"]), "heldout": _sized(sizes["heldout"]), "removed": _sized(sizes["removed"]),
        "sources": {
            source.name: {"license": source.license, **_sized(of_sources[source.name])} for source in config.sources
        },
        "funnel": [{key: value for key, value in entry.items() if key != "samples"} for entry in entries],
        **({"without_score": dict(num_scoreless)} if scores else {}),
        "skipped": len(reading.skipped),
        "skipped_files": [f"{s.source}:{s.path}: {s.reason}: {s.detail}" for s in reading.skipped[:LISTED]],
    }  # fmt: skip


def _write_funnel(path: Path, funnel: Sequence[dict[str, Any]], reading: Reading) -> None:
    skipped = [asdict(entry) for entry in reading.skipped]
    write_text(path, json.dumps({"steps": list(funnel), "skipped": skipped}, indent=1) + "\n")


def _size(documents: pa.Table) -> dict[str, int]:
    return {"documents": len(documents), "bytes": int(documents["text_bytes"].to_numpy().sum())}


def _sized(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("documents", "bytes")}
