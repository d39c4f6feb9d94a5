"""What comparing documents takes on a cluster: bytes on disk, bytes read or sent over the network, and memory of the
process that compares, from the documents of a sample.

Columns have fixed widths, so most follows from the number of documents; which are compared whole, and the size of their
shingles, is measured. What is grouped counts as sent whole: on n machines it is (n - 1) / n of it. Documents with a key
in common are a larger share of a larger corpus; if all had one, links and shingles would be `1 / share` as much.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.documents import tagged_documents
from lifecycle.data.selecting.daft_process import BLOCK_ROWS, OPEN_BLOCKS
from lifecycle.data.selecting.similarity import shingles

NUMBER = 8  # bytes of a key and of an ordinal
KEPT = 20  # bytes of memory for each document (`dedup.py`)


@dataclass(frozen=True)
class Likeness:
    """Of a sample: documents that have words, those with a key in common with another, their links in all bands, the
    bytes of their shingles, and of their texts."""

    num_documents: int
    num_candidates: int
    num_links: int
    shingle_bytes: int
    text_bytes: int


@dataclass(frozen=True)
class Shuffle:
    """Of a corpus."""

    candidate_share: float  # of the sample's documents
    num_passes: int  # over the keys: one, or, once there are blocks, one for so many of them as are open at once
    disk_bytes: dict[str, int]
    network_bytes: dict[str, int]
    memory_bytes: int

    @classmethod
    def of(cls, found: Likeness, num_documents: int, bands: int, hashes: int) -> Self:
        """Of so many documents like those of the sample, with so many bands, and `hashes` of 16 bytes by which whole
        documents are compared (content, address)."""
        scale = num_documents / max(found.num_documents, 1)
        blocks = max(1, -(-num_documents // BLOCK_ROWS))
        passes = -(-blocks // OPEN_BLOCKS)
        # Read and grouped: an ordinal and a key for each band; an ordinal and both halves of each hash.
        row_bytes = NUMBER * (2 * bands + 3 * hashes)
        # The groups, sent beside the rows that are joined to them: key or halves, least ordinal, number of documents.
        group_bytes = NUMBER * (3 * bands + 4 * hashes)
        return cls(
            found.num_candidates / max(found.num_documents, 1), passes,
            {
                "keys": num_documents * NUMBER * (1 + bands),
                "links": int(scale * found.num_links) * 2 * NUMBER,
                "shingles": int(scale * found.shingle_bytes),
            },
            {
                "keys read": num_documents * row_bytes * passes,
                "blocks": 2 * num_documents * row_bytes if blocks > 1 else 0,  # written and read
                "rows and groups": num_documents * (row_bytes + group_bytes),
                "texts of candidates": int(scale * found.text_bytes),
                "shingles": int(scale * found.shingle_bytes),
            },
            num_documents * KEPT,
        )  # fmt: skip


def likeness_in(tagging: Path) -> Likeness:
    """Measures the tagged documents in a folder."""
    documents = pa.concat_tables(stretch.read(["bands"]) for stretch in tagged_documents(tagging))
    lists = documents["bands"].combine_chunks()
    has_words = lists.is_valid().to_numpy(zero_copy_only=False)
    num_rows, values = int(has_words.sum()), lists.flatten().to_numpy()
    keys = values.reshape(num_rows, len(values) // max(num_rows, 1))
    is_candidate, num_links = _linked(keys)
    chosen = np.zeros(len(has_words), bool)
    chosen[has_words] = is_candidate
    sizes = [(len(shingles(text)) * NUMBER, len(text.encode())) for text in _texts(tagging, chosen)]
    shingle_bytes, text_bytes = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
    return Likeness(len(keys), int(is_candidate.sum()), num_links, shingle_bytes, text_bytes)


def _linked(keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], int]:
    """Whether each row has a key in common with another, and the number of rows behind the first of a key, in all
    columns."""
    is_linked, num_links = np.zeros(len(keys), bool), 0
    for column in keys.T:
        _, places, counts = np.unique(column, return_inverse=True, return_counts=True)
        is_linked |= counts[places] > 1
        num_links += len(column) - len(counts)
    return is_linked, num_links


def _texts(tagging: Path, chosen: NDArray[np.bool_]) -> Iterator[str]:
    for stretch in tagged_documents(tagging):
        own = pa.array(chosen[stretch.first : stretch.end])
        texts: Sequence[str] = stretch.read(["text"]).filter(own)["text"].to_pylist()
        yield from texts
