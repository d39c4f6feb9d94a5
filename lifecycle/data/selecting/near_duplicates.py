"""Near-duplicates among candidates: their shingles and the similarities of pairs by workers, band by band."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lifecycle.core.progress import Progress, Silent
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import Stretch, num_documents, pieces_of
from lifecycle.data.selecting.candidate_pairs import Parts, waves_of
from lifecycle.data.selecting.daft_process import Ordinals, read_links
from lifecycle.data.selecting.earlier import Pool
from lifecycle.data.selecting.shingle_store import ShingleStore, write_index, write_shingles
from lifecycle.data.selecting.similarity import NearDuplicate, Pair, SimilarGroups
from lifecycle.data.tagging.engine import Engine, ordered_results

PAIRS_EACH = 2_000  # that a worker compares at a time: 0.05 s


def near_duplicates(
    pool: Pool, bands: Sequence[str], config: DedupConfig, folder: Path, engine: Engine, progress: Progress
) -> list[NearDuplicate]:
    """The near-duplicates among the documents of the run that the links of these bands name, by ordinal."""
    links = (read_links(folder, band, pool.num_own) for band in bands)
    candidates = np.unique(np.concatenate([side for sides in links for side in sides]))
    if not len(candidates):
        return []
    num_own = int(np.searchsorted(candidates, pool.num_own))
    groups = SimilarGroups(len(candidates), num_own, config.jaccard)
    shingles = folder / "shingles"
    shingles.mkdir()
    _write_shingles(pool.stretches, candidates, shingles, engine, progress)
    progress.start("comparing pairs", len(bands))
    with ShingleStore(shingles) as store:
        parts_of = Parts(store.sketch)
        for number, band in enumerate(bands):
            sides = read_links(folder, band, pool.num_own)
            for pairs in waves_of(parts_of(_buckets(*(np.searchsorted(candidates, side) for side in sides))), num_own):
                apart = groups.apart(pairs)
                groups.join(apart, _similarities(apart, shingles, engine))
            progress.update(number + 1)
    ordinals = candidates.tolist()
    return [
        NearDuplicate(ordinals[found.number], ordinals[found.kept], ordinals[found.like], found.jaccard)
        for found in groups.duplicates(pool.ranks[candidates])
    ]


def _write_shingles(
    stretches: Sequence[Stretch], candidates: Ordinals, folder: Path, engine: Engine, progress: Progress
) -> None:
    """Writes the shingles of the candidates, numbered as they are there."""
    is_candidate = np.zeros(num_documents(stretches), bool)
    is_candidate[candidates] = True
    pieces = pieces_of(stretches, is_candidate)
    paths = [folder / f"{number:05d}.bin" for number in range(len(pieces))]
    sizes = ordered_results(engine, write_shingles, list(zip(pieces, paths, strict=True)), progress, "shingles")
    write_index(folder, paths, sizes)


def _similarities(pairs: Sequence[Pair], shingles: Path, engine: Engine) -> list[float]:
    """The similarity of each pair."""
    work = [(shingles, pairs[first : first + PAIRS_EACH]) for first in range(0, len(pairs), PAIRS_EACH)]
    found = ordered_results(engine, _similarities_of, work, Silent(), "")
    return [score for scores in found for score in scores]


def _similarities_of(work: tuple[Path, Sequence[Pair]]) -> list[float]:
    """The same of some; in worker processes."""
    folder, pairs = work
    with ShingleStore(folder) as store:
        return [store.similarity(*pair) for pair in pairs]


def _buckets(firsts: Ordinals, others: Ordinals) -> Iterator[list[int]]:
    """The documents of each bucket, ascending; the links are sorted."""
    starts = np.flatnonzero(np.diff(firsts, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(firsts)], strict=False):
        yield [int(firsts[start]), *others[start:end].tolist()]
