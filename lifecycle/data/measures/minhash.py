"""MinHash: the keys under which near-duplicates meet, a map step.

MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, section 3.4): two documents are
candidates if their signatures agree in at least one band. Word 5-grams, 14 bands of 8 hash functions as in FineWeb
(Penedo et al. 2024, arXiv:2406.17557, section 3.4); candidates are compared whole before one is removed (`dedup.py`).
What must hold: a key depends on the document's words and the two settings alone.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.steps import DocumentStep
from lifecycle.data.mixing import mixed
from lifecycle.data.ngrams import folded_characters

SHINGLE_WORDS = 5
MOST_CHARS = 500_000  # of a document: what follows does not change where it is looked for


@dataclass(frozen=True)
class Sign:
    """`text_bytes`, the size of the text; `bands`, a key for each band, null for a text without words."""

    bands: int
    rows: int
    columns: ClassVar[pa.Schema] = pa.schema([
        ("text_bytes", pa.int64()), ("bands", pa.list_(pa.uint64())),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Columns `text_bytes` and `bands`."""
        from lifecycle.data.compiled_words import sign

        data, offsets = utf8(batch["text"])
        num_texts = len(offsets) - 1
        keys, num_words = np.empty((num_texts, self.bands), np.uint64), np.empty(num_texts, np.int64)
        factors, terms = _functions(self.bands * self.rows)
        sign(data, offsets, folded_characters(), MOST_CHARS, SHINGLE_WORDS, factors, terms, keys, num_words)
        columns = [pa.array(np.diff(offsets)), _listed(keys, num_words > 0)]
        return pa.record_batch(columns, schema=self.columns)


def signature_step(config: DataConfig) -> DocumentStep:
    """The step `signature`; it removes nothing."""
    return DocumentStep("signature", Sign(config.dedup.bands, config.dedup.rows))


def _listed(keys: NDArray[np.uint64], present: NDArray[np.bool_]) -> pa.Array:
    """A list of keys for each row that is present, null for the others."""
    ends = np.concatenate([[0], np.cumsum(np.where(present, keys.shape[1], 0))]).astype(np.int32)
    values = pa.array(keys[present].ravel())
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(~present))


@lru_cache
def _functions(count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factors, odd, and terms of the hash functions."""
    drawn = (mixed(np.arange(2 * count, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
    return drawn[:count] | np.uint32(1), drawn[count:]
