"""Similarity of texts: Jaccard over word 5-grams, the choice of MinHash bands for it, and groups of similar documents.

Parameters after FineWeb (Penedo et al. 2024, arXiv:2406.17557, section 3.4), with more bands, since pairs are verified.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lifecycle.data.ngrams import Hashes, ngram_hashes, word_hashes, words_of

SHINGLE_WORDS = 5
NUM_HASHES = 128
MIN_RECALL = 0.99  # of pairs exactly at the threshold; above it recall is higher
CACHED_SHINGLES = 4096  # documents whose shingles are cached while pairs are verified


@dataclass(frozen=True)
class NearDuplicate:
    """A document to remove: the group's first document stays; `like` is the member that it is most similar to."""

    ordinal: int
    first: int
    like: int
    jaccard: float


def bands_for(jaccard: float) -> tuple[int, int]:
    """(bands, rows per band) of a signature: the most selective choice with at least `MIN_RECALL` at the threshold."""
    for rows in range(NUM_HASHES, 1, -1):
        bands = NUM_HASHES // rows
        if 1 - (1 - jaccard**rows) ** bands >= MIN_RECALL:
            return bands, rows
    return NUM_HASHES, 1


def verify_pairs(
    pairs: Iterable[tuple[int, int]], texts: Mapping[int, str], jaccard: float
) -> list[tuple[int, int, float]]:
    """The pairs whose true similarity reaches the threshold, each with its similarity."""

    @lru_cache(maxsize=CACHED_SHINGLES)
    def of(ordinal: int) -> Hashes:
        return shingles(texts[ordinal])

    scored = ((low, high, jaccard_similarity(of(low), of(high))) for low, high in pairs)
    return [(low, high, score) for low, high, score in scored if score >= jaccard]


def shingles(text: str) -> Hashes:
    """The set of a text's word 5-grams as sorted hashes; a text of fewer than five words is one shingle."""
    words = words_of(text)
    if not words:
        return np.empty(0, np.uint64)
    return np.unique(ngram_hashes(word_hashes(words), min(SHINGLE_WORDS, len(words))))


def jaccard_similarity(one: Hashes, other: Hashes) -> float:
    """Intersection size over union size of two sorted sets; 0 if both are empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - common
    return common / union if union else 0.0


def group_pairs(edges: Sequence[tuple[int, int, float]]) -> list[NearDuplicate]:
    """Connected components of the verified pairs; every member but the lowest is a duplicate. Sorted by ordinal."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = above
        return node

    best: dict[int, tuple[float, int]] = {}  # node -> (similarity, minus the neighbour): ties go to the lowest
    for one, other, score in edges:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
        for node, neighbour in ((one, other), (other, one)):
            best[node] = max(best.get(node, (0.0, 0)), (score, -neighbour))
    duplicates = (node for node in sorted(parent) if root(node) != node)
    return [NearDuplicate(node, root(node), -best[node][1], best[node][0]) for node in duplicates]
