"""Similarity of documents: Jaccard over word 5-grams, and groups of similar documents.

A group is what verified pairs connect; of its documents the preferred one stays. Which one that is does not change the
groups. Which pairs are compared decides nothing else: two documents that are connected already are not compared again.
"""

from array import array
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.measures.minhash import SHINGLE_WORDS
from lifecycle.data.mixing import mixed
from lifecycle.data.ngrams import Hashes, bare_characters, distinct, ngram_hashes, word_hashes

_SKETCHES = mixed(np.arange(4, dtype=np.uint64)) | np.uint64(1)  # factors

type Pair = tuple[int, int]


class NearDuplicate(NamedTuple):
    """A document to remove: `kept` of its group stays; `like` is the one most similar among those that it was compared
    with."""

    number: int
    kept: int
    like: int
    jaccard: float


def shingles(text: str) -> Hashes:
    """The set of a text's word 5-grams as sorted hashes, of words without accents; a text of fewer than five words is
    one shingle."""
    hashes = word_hashes(text, _letters())
    return distinct(ngram_hashes(hashes, min(SHINGLE_WORDS, len(hashes)))) if len(hashes) else hashes


@cache
def _letters() -> NDArray[np.uint32]:
    """`bare_characters`, and underscores: a name in source code is one word."""
    letters = bare_characters().copy()
    letters[ord("_")] = ord("_")
    return letters


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
    `num_own` on are of earlier corpora: none of them is removed."""

    def __init__(self, count: int, num_own: int, jaccard: float) -> None:
        self._jaccard, self._num_own = jaccard, num_own
        self._parent = array("i", range(count))
        self._like, self._score = array("i", bytes(4 * count)), array("d", bytes(8 * count))

    def apart(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs whose documents are in different groups so far."""
        return [(one, other) for one, other in pairs if self._root(one) != self._root(other)]

    def join(self, pairs: Iterable[Pair], scores: Iterable[float]) -> None:
        """Joins the groups of those pairs that are similar enough."""
        for pair, score in zip(pairs, scores, strict=True):
            if score >= self._jaccard:
                first, last = sorted(map(self._root, pair))
                self._parent[last] = first
                for node, neighbour in (pair, pair[::-1]):
                    if score > self._score[node]:
                        self._like[node], self._score[node] = neighbour, score

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
