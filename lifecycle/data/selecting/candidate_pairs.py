"""Which pairs of documents are compared: those of the bands' buckets, of large ones some.

A bucket's first documents are compared with all others. In a bucket so large that this leaves pairs out, such as texts
that differ in their numbers alone, similar documents are looked for once more, by their sketches.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lifecycle.data.selecting.similarity import Pair

BUCKET_HEADS = 16  # documents of a bucket that all others of it are compared with
PAIRS_AT_ONCE = 200_000  # some 20 MB


class Parts:
    """What of the bands' buckets is compared: a bucket itself; of a large one also the documents that have a value of
    their sketches in common."""

    def __init__(self, sketch_of: Callable[[int], tuple[int, ...]]) -> None:
        self._sketch_of = sketch_of
        self._seen = set[int]()

    def __call__(self, buckets: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        """The documents of buckets and of their parts, ascending; nothing of a large one that another band had."""
        for bucket in buckets:
            if len(bucket) <= BUCKET_HEADS + 1:
                yield bucket
            elif (members := hash(tuple(bucket))) not in self._seen:
                self._seen.add(members)
                yield bucket
                yield from self._parts(bucket)

    def _parts(self, bucket: Sequence[int]) -> Iterator[Sequence[int]]:
        members = np.array(bucket)
        for values in np.array([self._sketch_of(number) for number in bucket], np.uint64).T:
            order = np.argsort(values, kind="stable")
            starts = np.flatnonzero(np.diff(values[order])) + 1
            yield from (part.tolist() for part in np.split(members[order], starts) if 1 < len(part) < len(bucket))


def waves_of(parts: Iterable[Sequence[int]], num_own: int) -> Iterator[list[Pair]]:
    """The pairs to compare, some at a time. Of several parts first each one's first document with the others: most of
    those that are alike are then connected, and need not be compared with further ones."""
    waves: tuple[list[Pair], list[Pair]] = [], []
    for part in parts:
        for is_further, pair in _pairs_of(part, num_own):
            waves[is_further].append(pair)
            if len(waves[is_further]) == PAIRS_AT_ONCE:
                yield from waves
                waves = [], []
    yield from waves


def _pairs_of(part: Sequence[int], num_own: int) -> Iterator[tuple[bool, Pair]]:
    """The pairs of documents, ascending: of those of earlier corpora, from `num_own` on, the first `BUCKET_HEADS` with
    all others, and as many of the others with all behind them; and whether it is another than the first."""
    end = bisect_left(part, num_own)
    own, earlier = part[:end], part[end : end + BUCKET_HEADS]
    for at, head in enumerate(earlier):
        yield from ((at > 0, (other, head)) for other in own)
    for at, head in enumerate(own[:BUCKET_HEADS]):
        yield from ((at > 0, (head, other)) for other in own[at + 1 :])
