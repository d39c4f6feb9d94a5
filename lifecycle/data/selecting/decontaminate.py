"""Decontamination: finds training documents that contain text that the model will be tested on, to remove them whole;
or to cut it out of them (`contaminated_passages.py`).

Word 13-grams by default, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). The share of n-grams in common
decides, as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), so that a licence header alone does not count. The share
is taken on both sides: how much of the test item the training document contains, and how much of the training document
the test item contains (an excerpt of a held-out document must not be trained on, either).
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import batched
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.config import DecontaminationConfig
from lifecycle.data.documents import PIECE, Stretch, names_of
from lifecycle.data.measures.steps import Failure
from lifecycle.data.selecting.contamination import FILE, HITS, hit_table
from lifecycle.data.selecting.eval_items import TestItem
from lifecycle.data.selecting.overlap_index import Lookup, Match, OverlapIndex
from lifecycle.data.selecting.selection import removals
from lifecycle.data.tagging.engine import Engine, ordered_results

STEP = "decontamination"

type Chosen = NDArray[np.bool_]  # one for each document of a stretch
type Matches = Iterator[tuple[int, Match]]  # of the documents that have one, by ordinal


def decontaminate(
    stretches: Sequence[Stretch], chosen: Chosen, items: Sequence[TestItem], config: DecontaminationConfig,
    engine: Engine, out: Path, progress: Progress,
) -> tuple[pa.Table, OverlapIndex]:  # fmt: skip
    """The removals of chosen documents that overlap an item, and the index of the items; `chosen` has an entry for each
    document. Writes all hits into `out` (`contamination.py`). What documents and items have in common lies in files: of
    boilerplate that is much."""
    index = OverlapIndex(items, config.ngram)
    with tempfile.TemporaryDirectory(prefix="decontamination-", dir=out) as name:
        folder = Path(name)
        index.lookup.save(folder)
        parts = [(stretch, chosen[stretch.first : stretch.end]) for stretch in stretches]
        pieces = list(batched(parts, PIECE))
        files = [folder / f"matches-{number:05d}.npz" for number in range(len(pieces))]
        ordered_results(engine, _write_matches, list(zip(pieces, files, strict=True)), progress, STEP)
        index.drop_boilerplate(match for file in files for _, match in _read_matches(file))
        with pq.ParquetWriter(out / FILE, HITS, compression="zstd") as writer:
            failures = [
                failure
                for piece, file in zip(pieces, files, strict=True)
                for failure in _failures([stretch for stretch, _ in piece], file, index, config.min_overlap, writer)
            ]
        return removals(STEP, failures), index


def _write_matches(piece: tuple[Sequence[tuple[Stretch, Chosen]], Path]) -> None:
    """Writes what the chosen documents of some stretches have in common with the items; in worker processes."""
    parts, file = piece
    found = list(_matches(parts, _opened(file.parent)))
    lengths = sorted({n for _, match in found for n in match.positions})
    sizes = [[len(match.positions.get(n, ())) for n in lengths] for _, match in found]
    positions = [match.positions[n] for _, match in found for n in lengths if n in match.positions]
    np.savez(
        file,
        ordinals=np.array([ordinal for ordinal, _ in found], np.int64),
        num_own=np.array([match.num_own for _, match in found], np.int64),
        lengths=np.array(lengths, np.int64),
        sizes=np.array(sizes, np.int64).reshape(len(found), len(lengths)),
        positions=np.concatenate([np.zeros(0, np.int64), *positions]),
    )


def _matches(parts: Sequence[tuple[Stretch, Chosen]], lookup: Lookup) -> Matches:
    for stretch, chosen in parts:
        documents = stretch.read(["text"]).filter(pa.array(chosen))
        for ordinal, text in zip(documents["ordinal"].to_pylist(), documents["text"].to_pylist(), strict=True):
            if (match := lookup.match(text)) is not None:
                yield ordinal, match


def _read_matches(file: Path) -> Matches:
    """What `_write_matches` has written."""
    with np.load(file) as found:
        lengths, positions, at = found["lengths"].tolist(), found["positions"], 0
        rows = zip(found["ordinals"].tolist(), found["num_own"].tolist(), found["sizes"].tolist(), strict=True)
    for ordinal, num_own, sizes in rows:
        own: dict[int, NDArray[np.int64]] = {}
        for n, size in zip(lengths, sizes, strict=True):
            own[n] = positions[at : at + size]
            at += size
        yield ordinal, Match(own, num_own)


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Lookup:
    return Lookup.load(folder)


def _failures(
    stretches: Sequence[Stretch], file: Path, index: OverlapIndex, min_overlap: float, writer: pq.ParquetWriter
) -> Iterator[Failure]:
    """The documents of some stretches that overlap an item, each with the one that it overlaps most; writes all."""
    matches = ((ordinal, match, index.hits(match, min_overlap)) for ordinal, match in _read_matches(file))
    found = [entry for entry in matches if entry[2]]
    if not found:
        return
    names = names_of(stretches, np.array([ordinal for ordinal, _, _ in found]))
    rows = ((ordinal, hit, index.common(match, hit.ngram)) for ordinal, match, hits in found for hit in hits)
    writer.write_table(hit_table(rows, names))
    for ordinal, _, hits in found:
        worst = hits[0]
        yield Failure(ordinal, worst.item.kind, f"{worst.share:.2f} of the n-grams with {worst.item.name}")
