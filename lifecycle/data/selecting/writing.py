"""Writes selected documents, in pieces, by all processes; each piece has its part of the funnel and of the counts."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.document_writer import DocumentWriter, cut_evenly, gather_files
from lifecycle.data.documents import SPLITS, Flags, Split
from lifecycle.data.measures.filters import document_steps, joined_steps
from lifecycle.data.measures.steps import DocumentStep, MapStep
from lifecycle.data.selecting.cut_sizes import cut_sizes
from lifecycle.data.selecting.cuts import CUTS, CutStretch, with_passages, without_cuts
from lifecycle.data.selecting.cutting import cutting_steps
from lifecycle.data.selecting.funnel import Funnel
from lifecycle.data.selecting.selection import (
    VERDICT,
    joined,
    kept_documents,
    remaining,
    removals_within,
    removed_documents,
    select,
)
from lifecycle.data.tagging.engine import Engine, ordered_results
from lifecycle.data.tagging.partitions import tagged_schema


@dataclass(frozen=True)
class Selection:
    """What becomes of the documents of some stretches, one behind the other: the removals by comparison, sorted by
    ordinal, and for each document whether it is held out."""

    stretches: Sequence[CutStretch]
    removed: pa.Table
    is_heldout: Flags

    def pieces(self) -> list["Selection"]:
        """The selection in pieces for processes."""
        sizes = [stretch.num_bytes for stretch in self.stretches]
        return [self._part(stretches) for stretches in cut_evenly(self.stretches, sizes)]

    def _part(self, stretches: Sequence[CutStretch]) -> "Selection":
        first, end = stretches[0].first, stretches[-1].end
        start = self.stretches[0].first
        removed = removals_within(self.removed, first, end)
        copied = removed.take(pa.array(range(len(removed)), pa.int64()))  # of a slice all is sent to a process
        return Selection(stretches, copied, self.is_heldout[first - start : end - start])

    def documents(
        self, steps: Sequence[DocumentStep], joins: Sequence[MapStep], funnel: Funnel
    ) -> Iterator[dict[Split, pa.Table]]:
        """The documents, split, a row group at a time, with the columns of `VERDICT`; the funnel counts them."""
        for stretch in self.stretches:
            documents = joined(stretch.tagged(), joins)
            compared = removals_within(self.removed, stretch.first, stretch.end)
            removals = pa.concat_tables([select(documents, steps), compared])
            removed = removed_documents(documents, removals)
            left = without_cuts(remaining(documents, removals), stretch)
            flags = self.is_heldout[left["ordinal"].to_numpy() - self.stretches[0].first]
            heldout, training = left.filter(pa.array(flags)), left.filter(pa.array(~flags))
            funnel.add(documents, removed, heldout, cut_sizes(stretch, documents))
            yield {
                "kept": with_passages(kept_documents(training), documents, stretch),
                "heldout": with_passages(kept_documents(heldout), documents, stretch),
                "removed": with_passages(removed, documents, stretch),
            }


@dataclass(frozen=True)
class Written:
    """What was written of some documents: documents and bytes of each split, those kept of each source, and for each
    score that was joined how many documents have none."""

    funnel: Funnel
    sizes: dict[Split, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    of_sources: dict[str, Counter[str]] = field(default_factory=dict)
    num_scoreless: Counter[str] = field(default_factory=Counter)

    def count(self, split: Split, documents: pa.Table, scores: Sequence[str]) -> None:
        """Counts some documents of a split."""
        self.sizes[split].update(_size(documents))
        self.num_scoreless.update({name: documents[name].null_count for name in scores})
        if split == "kept":
            for name in documents["source"].unique().to_pylist():
                own = documents.filter(documents["source"].to_numpy() == name)
                self.of_sources.setdefault(name, Counter()).update(_size(own))

    def add(self, other: "Written") -> None:
        """Counts what was written of the documents behind these."""
        self.funnel.join(other.funnel)
        self.num_scoreless.update(other.num_scoreless)
        for split, size in other.sizes.items():
            self.sizes[split].update(size)
        for name, size in other.of_sources.items():
            self.of_sources.setdefault(name, Counter()).update(size)


def write_documents(selection: Selection, config: DataConfig, engine: Engine, out: Path, progress: Progress) -> Written:
    """Writes all documents, as `kept-*`, `heldout-*` and `removed-*.parquet` into `out`."""
    with tempfile.TemporaryDirectory(prefix="pieces-", dir=out) as name:
        pieces = selection.pieces()
        folders = [Path(name, f"{number:05d}") for number in range(len(pieces))]
        work = [(piece, config, folder) for piece, folder in zip(pieces, folders, strict=True)]
        written = Written(_funnel(config))
        for part in ordered_results(engine, _write, work, progress, "writing documents"):
            written.add(part)
        for split in SPLITS:
            gather_files(folders, split, out)
    return written


def _write(work: tuple[Selection, DataConfig, Path]) -> Written:
    """Writes a piece into a folder of its own; in worker processes."""
    selection, config, folder = work
    folder.mkdir(exist_ok=True)  # there if a process died over it
    steps, joins = document_steps(config), joined_steps(config)
    scores = [column for step in joins for column in step.columns]
    schema = pa.schema([*tagged_schema(config), *scores, *VERDICT, CUTS])
    written = Written(_funnel(config))
    with ExitStack() as stack:
        writers = {split: stack.enter_context(DocumentWriter(folder, split, schema)) for split in SPLITS}
        for parts in selection.documents(steps, joins, written.funnel):
            for split, documents in parts.items():
                writers[split].write(documents.drop_columns("ordinal"))
                written.count(split, documents, [score.name for score in scores])
    return written


def _funnel(config: DataConfig) -> Funnel:
    return Funnel(document_steps(config), cutting_steps(config.dedup))


def _size(documents: pa.Table) -> dict[str, int]:
    return {"documents": len(documents), "bytes": int(documents["text_bytes"].to_numpy().sum())}
