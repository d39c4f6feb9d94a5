"""Similarity of documents: Jaccard over word 5-grams, and groups of similar documents.

A group is what verified pairs connect; of its documents the preferred one stays. Which one that is does not change the
groups. Which pairs are compared decides nothing else: two documents that are connected already are not compared again.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.measures.minhash import SHINGLE_WORDS
from lifecycle.data.mixing import mixed
from lifecycle.data.ngrams import Hashes, distinct, ngram_hashes, word_hashes

BUCKET_HEADS = 16  # documents of a bucket that all others of it are compared with
_SKETCHES = mixed(np.arange(4, dtype=np.uint64)) | np.uint64(1)  # factors


class NearDuplicate(NamedTuple):
    """A document to remove: `kept` of its group stays; `like` is the one most similar among those that it was compared
    with."""

    number: int
    kept: int
    like: int
    jaccard: float


def shingles(text: str) -> Hashes:
    """The set of a text's word 5-grams as sorted hashes; a text of fewer than five words is one shingle."""
    hashes = word_hashes(text)
    return distinct(ngram_hashes(hashes, min(SHINGLE_WORDS, len(hashes)))) if len(hashes) else hashes


def jaccard_similarity(one: Hashes, other: Hashes) -> float:
    """Intersection size over union size of two sorted sets; 0 if both are empty."""
    from lifecycle.data.compiled_words import num_common

    common = num_common(one, other)
    union = len(one) + len(other) - common
    return common / union if union else 0.0


def sketch(shingled: Hashes) -> tuple[int, ...]:
    """Of four hash functions the least value over a set of shingles: two sets have each in common with a probability of
    their similarity."""
    return tuple(int((shingled * factor).min()) for factor in _SKETCHES)


class Parts:
    """What of the bands' buckets is compared: a bucket itself; of one so large that not all its pairs are compared
    (texts that differ in their numbers alone are one in each band) also what has a value of a sketch in common."""

    def __init__(self, sketch_of: Callable[[int], tuple[int, ...]]) -> None:
        self._sketch_of = sketch_of
        self._seen = set[int]()

    def __call__(self, bucket: Sequence[int]) -> Iterator[Sequence[int]]:
        """The documents of a bucket and of its parts, ascending; nothing of a large one that another band had."""
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


def preferred(groups: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each member of a group the position of the one that stays: that of the group's lowest rank. No two members of
    a group have the same."""
    order = np.lexsort((ranks, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    kept = np.empty(len(groups), np.int64)
    kept[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return kept


class SimilarGroups:
    """Groups among documents with the numbers 0 to `count - 1`, joined pair by pair: 16 bytes a document. Those from
    `num_own` on are of earlier corpora: they are not compared with each other, and none of them is removed."""

    def __init__(self, count: int, num_own: int, similarity: Callable[[int, int], float], jaccard: float) -> None:
        self._similarity, self._jaccard, self._num_own = similarity, jaccard, num_own
        self._parent = array("i", range(count))
        self._like, self._score = array("i", bytes(4 * count)), array("d", bytes(8 * count))

    def join(self, bucket: Sequence[int]) -> None:
        """Compares the documents of a bucket, ascending: of the earlier ones the first `BUCKET_HEADS` with all others,
        and as many of the others with all behind them."""
        end = bisect_left(bucket, self._num_own)
        own, earlier = bucket[:end], bucket[end : end + BUCKET_HEADS]
        for other in own:
            for head in earlier:
                self._meet(other, head)
        for at, head in enumerate(own[:BUCKET_HEADS]):
            for other in own[at + 1 :]:
                self._meet(head, other)

    def duplicates(self, ranks: NDArray[np.int64]) -> list[NearDuplicate]:
        """Every document but the one with the lowest rank of each group, ascending; a rank for each document, those of
        earlier ones the lowest."""
        count = len(self._parent)
        kept = preferred(np.fromiter(map(self._root, range(count)), np.int64, count), ranks).tolist()
        return [
            NearDuplicate(number, kept[number], self._like[number], self._score[number])
            for number in range(self._num_own)
            if kept[number] != number
        ]

    def _root(self, node: int) -> int:
        parent = self._parent
        while (above := parent[node]) != node:
            parent[node] = parent[above]
            node = above
        return node

    def _meet(self, low: int, high: int) -> None:
        if self._root(low) == self._root(high):
            return
        score = self._similarity(low, high)
        if score < self._jaccard:
            return
        first, last = sorted((self._root(low), self._root(high)))
        self._parent[last] = first
        for node, neighbour in ((low, high), (high, low)):
            if score > self._score[node]:
                self._like[node], self._score[node] = neighbour, score
