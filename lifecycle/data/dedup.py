"""Deduplication: exact copies, then near-duplicates by MinHash, verified, grouped and reduced to their first member.

Candidate pairs come from `candidates.py`; a pair counts only if the true Jaccard similarity of its word 5-grams reaches
the threshold, so nothing is removed by a hash's chance. Connected documents form a group, of which the first in the
order of the sources stays: the choice depends neither on partitions nor on the number of workers.
Parameters after FineWeb (Penedo et al. 2024, arXiv:2406.17557, section 3.4), with more bands since pairs are verified.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.documents import Document
from lifecycle.data.ngrams import Hashes, ngram_hashes, word_hashes, words_of
from lifecycle.data.workers import call_alone

SHINGLE_WORDS = 5
NUM_HASHES = 128
MIN_RECALL = 0.99  # of pairs exactly at the threshold; above it recall is higher
KEPT_SHINGLES = 4096  # documents whose shingles are remembered while pairs are verified


@dataclass(frozen=True)
class NearDuplicate:
    """A document to remove: the group's first document stays; `like` is the member that it is most similar to."""

    ordinal: int
    first: int
    like: int
    jaccard: float


@dataclass(frozen=True)
class Duplicates:
    """What deduplication found, as positions in the sequence of documents."""

    exact: list[tuple[int, int]]  # (copy, first)
    near: list[NearDuplicate]
    num_candidates: int


def deduplicate(documents: Sequence[Document], jaccard: float) -> Duplicates:
    """Finds the duplicates among documents and marks them as removed."""
    table = pa.table({
        "ordinal": pa.array(range(len(documents)), pa.int64()),
        "text": pa.array([document.text for document in documents], pa.large_string()),
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lifecycle-dedup-") as folder:
        path = Path(folder) / "documents.parquet"
        pq.write_table(table, path, compression="lz4")
        found = call_alone(find_duplicates, path, jaccard)
    for copy, first in found.exact:
        documents[copy].remove("exact_duplicates", "exact_duplicate", f"same text as {_name(documents[first])}")
    for near in found.near:
        like, first = _name(documents[near.like]), _name(documents[near.first])
        kept = "" if near.like == near.first else f"; kept of its group: {first}"
        documents[near.ordinal].remove(
            "near_duplicates", "near_duplicate", f"Jaccard {near.jaccard:.3f} with {like}{kept}"
        )
    return found


def find_duplicates(path: Path, jaccard: float) -> Duplicates:
    """Duplicates among the rows (`ordinal`, `text`) of a Parquet file or a folder of them.

    Run in a process of its own: where both Daft and JAX are loaded, the interpreter has been seen to crash while it
    ends (3 of 100 runs).
    """
    # no telemetry, and nothing on the terminal, where the stage's own progress is
    os.environ.update(dict.fromkeys(("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID"), "0"))
    import daft

    from lifecycle.data import candidates

    documents = daft.read_parquet(str(path))
    exact = candidates.exact_groups(documents.with_column("content", daft.col("text")))
    survivors = documents.where(~daft.col("ordinal").is_in([copy for copy, _ in exact])) if exact else documents
    pairs = candidates.candidate_pairs(survivors, jaccard)
    texts = candidates.texts_of(survivors, sorted({ordinal for pair in pairs for ordinal in pair})) if pairs else {}
    return Duplicates(exact, group_pairs(verify_pairs(pairs, texts, jaccard)), len(pairs))


def bands_for(jaccard: float) -> tuple[int, int]:
    """(bands, rows per band) of a signature: the most selective that still finds `MIN_RECALL` at the threshold."""
    for rows in range(NUM_HASHES, 1, -1):
        bands = NUM_HASHES // rows
        if 1 - (1 - jaccard**rows) ** bands >= MIN_RECALL:
            return bands, rows
    return NUM_HASHES, 1


def verify_pairs(
    pairs: Iterable[tuple[int, int]], texts: dict[int, str], jaccard: float
) -> list[tuple[int, int, float]]:
    """The pairs whose true similarity reaches the threshold, with it."""

    @lru_cache(maxsize=KEPT_SHINGLES)
    def of(ordinal: int) -> Hashes:
        return shingles(texts[ordinal])

    scored = ((low, high, jaccard_similarity(of(low), of(high))) for low, high in pairs)
    return [(low, high, score) for low, high, score in scored if score >= jaccard]


def shingles(text: str) -> Hashes:
    """The set of a text's word 5-grams as sorted hashes; all its words together if it has fewer than five."""
    words = words_of(text)
    return (
        np.unique(ngram_hashes(word_hashes(words), min(SHINGLE_WORDS, len(words)))) if words else np.empty(0, np.uint64)
    )


def jaccard_similarity(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union of two sorted sets; 0 if both are empty."""
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


def _name(document: Document) -> str:
    return f"{document.source}:{document.path}"
