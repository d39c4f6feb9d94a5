"""Deduplication: exact copies, then near-duplicates by MinHash, verified, grouped and reduced to their first member.

Candidate pairs come from `minhash.py`; a pair counts only if the true Jaccard similarity of its word 5-grams reaches
the threshold, so a chance match of signatures removes nothing. Connected documents form a group, and the first one in
the order of the sources stays: the choice depends neither on partitions nor on the number of workers.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.documents import document_names
from lifecycle.data.selection import removals
from lifecycle.data.similarity import NearDuplicate, group_pairs, verify_pairs
from lifecycle.data.steps import Failure
from lifecycle.data.workers import call_alone

EXACT, NEAR = "exact_duplicates", "near_duplicates"  # the names of the steps


@dataclass(frozen=True)
class Duplicates:
    """The duplicates among documents, by ordinal."""

    exact: list[tuple[int, int]]  # (copy, first)
    near: list[NearDuplicate]
    num_candidates: int


def deduplicate(documents: pa.Table, jaccard: float) -> pa.Table:
    """The removals of duplicates. Reads the columns `ordinal`, `text`, `source` and `path`."""
    with tempfile.TemporaryDirectory(prefix="lifecycle-dedup-") as folder:
        path = Path(folder) / "documents.parquet"
        pq.write_table(documents.select(["ordinal", "text"]), path, compression="lz4")
        duplicates = call_alone(find_duplicates, path, jaccard)
    names = _names(documents, duplicates)
    return pa.concat_tables([
        removals(EXACT, _exact_failures(duplicates.exact, names)),
        removals(NEAR, _near_failures(duplicates.near, names)),
    ])  # fmt: skip


def find_duplicates(path: Path, jaccard: float) -> Duplicates:
    """Duplicates among the rows (`ordinal`, `text`) of a Parquet file or a folder of them. Run with `call_alone`."""
    from lifecycle.data import minhash

    documents = minhash.read_texts(path)
    exact = minhash.exact_groups(documents)
    originals = minhash.without(documents, [copy for copy, _ in exact])
    pairs = minhash.candidate_pairs(originals, jaccard)
    texts = minhash.texts_of(originals, sorted({ordinal for pair in pairs for ordinal in pair}))
    return Duplicates(exact, group_pairs(verify_pairs(pairs, texts, jaccard)), len(pairs))


def _names(documents: pa.Table, duplicates: Duplicates) -> dict[int, str]:
    """The names of the documents that removal reasons refer to, by ordinal."""
    ordinals = {first for _, first in duplicates.exact} | {
        n for near in duplicates.near for n in (near.like, near.first)
    }
    named = documents.filter(np.isin(documents["ordinal"].to_numpy(), sorted(ordinals)))
    return dict(zip(named["ordinal"].to_pylist(), document_names(named), strict=True))


def _exact_failures(exact: list[tuple[int, int]], names: dict[int, str]) -> Iterator[Failure]:
    for copy, first in exact:
        yield Failure(copy, "exact_duplicate", f"same text as {names[first]}")


def _near_failures(near: list[NearDuplicate], names: dict[int, str]) -> Iterator[Failure]:
    for duplicate in near:
        kept = "" if duplicate.like == duplicate.first else f"; kept of its group: {names[duplicate.first]}"
        detail = f"Jaccard {duplicate.jaccard:.3f} with {names[duplicate.like]}{kept}"
        yield Failure(duplicate.ordinal, "near_duplicate", detail)
