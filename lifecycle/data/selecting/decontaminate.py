"""Decontamination: finds training documents that contain text that the model will be tested on, to remove them whole;
or to cut it out of them (`contaminated_passages.py`).

Word 13-grams by default, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). The share of n-grams in common
decides, as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), so that a licence header alone does not count. The share
is taken on both sides: how much of the test item the training document contains, and how much of the training document
the test item contains (an excerpt of a held-out document must not be trained on, either).
"""

import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.config import DecontaminationConfig
from lifecycle.data.documents import Flags, Stretch, names_of, pieces_of
from lifecycle.data.measures.steps import Failure
from lifecycle.data.selecting.contamination import FILE, HITS, hit_table
from lifecycle.data.selecting.eval_items import TestItem
from lifecycle.data.selecting.gram_lookup import Lookup, Match
from lifecycle.data.selecting.item_shares import ItemShares
from lifecycle.data.selecting.overlap_index import Overlap, OverlapIndex, overlaps
from lifecycle.data.selecting.selection import removals
from lifecycle.data.tagging.engine import Engine, ordered_results

STEP = "decontamination"
_POSITIONS, _ENDS = "positions-", "ends-"  # in a file, with an n-gram length: of all documents, and where each's end
_COLUMNS = ("ordinal", *Overlap._fields)
_NONE = np.zeros(0, np.int64)

type Matches = Iterator[tuple[int, Match]]  # of the documents that have one, by ordinal


def decontaminate(
    stretches: Sequence[Stretch], chosen: Flags, items: Sequence[TestItem], config: DecontaminationConfig,
    engine: Engine, out: Path, progress: Progress,
) -> tuple[pa.Table, OverlapIndex]:  # fmt: skip
    """The removals of chosen documents that overlap an item, and the index of the items; `chosen` has an entry for each
    document. Writes all hits into `out` (`contamination.py`). What documents and items have in common lies in files: of
    boilerplate that is much."""
    index = OverlapIndex(items, config.ngram)
    with tempfile.TemporaryDirectory(prefix="decontamination-", dir=out) as name:
        folder = Path(name)
        index.lookup.save(folder)
        pieces = pieces_of(stretches, chosen)
        files = [_Files(folder, number) for number in range(len(pieces))]
        ordered_results(engine, _write_matches, list(zip(pieces, files, strict=True)), progress, STEP)
        index.drop_boilerplate(map(_read_positions, files))
        index.shares.save(folder)
        work = [(file, config.min_overlap) for file in files]
        ordered_results(engine, _write_overlaps, work, progress, f"{STEP}: shares")
        with pq.ParquetWriter(out / FILE, HITS, compression="zstd") as writer:
            failures = [
                failure
                for piece, file in zip(pieces, files, strict=True)
                for failure in _failures([stretch for stretch, _ in piece], file, index, writer)
            ]
        return removals(STEP, failures), index


@dataclass(frozen=True)
class _Files:
    """Of a piece of the work: what its documents have in common with the items, and which items that makes overlap."""

    folder: Path
    number: int

    @property
    def matches(self) -> Path:
        return self.folder / f"matches-{self.number:05d}.npz"

    @property
    def overlaps(self) -> Path:
        return self.folder / f"overlaps-{self.number:05d}.npz"


def _write_matches(work: tuple[Sequence[tuple[Stretch, Flags]], _Files]) -> None:
    """Writes what the chosen documents of some stretches have in common with the items; in worker processes."""
    parts, file = work
    found = list(_matches(parts, _opened(file.folder)))
    arrays = {
        "ordinals": np.array([ordinal for ordinal, _ in found], np.int64),
        "num_own": np.array([match.num_own for _, match in found], np.int64),
    }
    for n in sorted({n for _, match in found for n in match.positions}):
        own = [match.positions.get(n, _NONE) for _, match in found]
        arrays |= {f"{_POSITIONS}{n}": np.concatenate(own), f"{_ENDS}{n}": np.cumsum([len(found) for found in own])}
    np.savez(file.matches, allow_pickle=False, **arrays)


def _matches(parts: Sequence[tuple[Stretch, Flags]], lookup: Lookup) -> Matches:
    for stretch, chosen in parts:
        documents = stretch.read(["text"]).filter(pa.array(chosen))
        for ordinal, text in zip(documents["ordinal"].to_pylist(), documents["text"].to_pylist(), strict=True):
            if (match := lookup.match(text)) is not None:
                yield ordinal, match


def _read_matches(file: _Files, chosen: Container[int] | None = None) -> Matches:
    """What `_write_matches` has written, of all documents or of those chosen."""
    with np.load(file.matches) as found:
        positions, ordinals, nums = _positions(found), found["ordinals"].tolist(), found["num_own"].tolist()
        ends = {n: found[f"{_ENDS}{n}"] for n in positions}
    for at, (ordinal, num_own) in enumerate(zip(ordinals, nums, strict=True)):
        if chosen is None or ordinal in chosen:
            own = {n: positions[n][ends[n][at - 1] if at else 0 : ends[n][at]] for n in positions}
            yield ordinal, Match(own, num_own)


def _read_positions(file: _Files) -> dict[int, NDArray[np.int64]]:
    with np.load(file.matches) as found:
        return _positions(found)


def _positions(found: Mapping[str, NDArray[np.int64]]) -> dict[int, NDArray[np.int64]]:
    """The positions of all documents in a file, by n-gram length."""
    return {int(name.removeprefix(_POSITIONS)): found[name] for name in found if name.startswith(_POSITIONS)}


def _write_overlaps(work: tuple[_Files, float]) -> None:
    """Writes which items have at least this share in common with a document, for those of a file; in worker
    processes."""
    file, min_overlap = work
    shares = _opened_shares(file.folder)
    found = [(ordinal, overlaps(shares, match, min_overlap)) for ordinal, match in _read_matches(file)]
    rows = [(ordinal, *overlap) for ordinal, own in found for overlap in own]
    arrays = {name: np.array([row[at] for row in rows]) for at, name in enumerate(_COLUMNS)}
    np.savez(file.overlaps, allow_pickle=False, **arrays)


def _read_overlaps(file: _Files) -> dict[int, list[Overlap]]:
    """What `_write_overlaps` has written, by ordinal."""
    found: dict[int, list[Overlap]] = {}
    with np.load(file.overlaps) as columns:
        for ordinal, *overlap in zip(*(columns[name].tolist() for name in _COLUMNS), strict=True):
            found.setdefault(ordinal, []).append(Overlap(*overlap))
    return found


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Lookup:
    return Lookup.load(folder)


@lru_cache(maxsize=1)
def _opened_shares(folder: Path) -> ItemShares:
    return ItemShares.load(folder)


def _failures(
    stretches: Sequence[Stretch], file: _Files, index: OverlapIndex, writer: pq.ParquetWriter
) -> Iterator[Failure]:
    """The documents of some stretches that overlap an item, each with the one that it overlaps most; writes all."""
    found = {ordinal: index.hits(own) for ordinal, own in _read_overlaps(file).items()}
    if not found:
        return
    names = names_of(stretches, np.array([*found]))
    matches = dict(_read_matches(file, found))
    rows = (
        (ordinal, hit, index.common(matches[ordinal], hit.ngram)) for ordinal, hits in found.items() for hit in hits
    )
    writer.write_table(hit_table(rows, names))
    for ordinal, hits in found.items():
        worst = hits[0]
        yield Failure(ordinal, worst.item.kind, f"{worst.share:.2f} of the n-grams with {worst.item.name}")
