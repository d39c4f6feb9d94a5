"""MinHash: the keys under which near-duplicates meet, a map step.

MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, section 3.4): two documents are
candidates if their signatures agree in at least one band. Word 5-grams, 14 bands of 8 hash functions as in FineWeb
(Penedo et al. 2024, arXiv:2406.17557, section 3.4); candidates are compared whole before one is removed (`dedup.py`).
The words and hash functions are those of datatrove 0.10 in English, so that the candidates are, too: lower case, no
accents, a number is 0, XXH64 of the words with spaces between, and the linear functions that its seed 1 draws.
What must hold: a key depends on the document's words and the two settings alone.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.steps import DocumentStep
from lifecycle.data.ngrams import bare_characters

SHINGLE_WORDS = 5
FUNCTIONS = "XXH64, modulo 2^61 - 1, bare letters"  # change it with keys or shingles: other versions' do not meet
MOST_CHARS = 500_000  # of a document: what follows does not change where it is looked for
_WITH_MARKS = (range(0x20000), range(0xE0100, 0xE01F0))  # code points; all accents are among them


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
        from lifecycle.data.compiled_minhash import sign

        data, offsets = utf8(batch["text"])
        keys = np.zeros((len(offsets) - 1, self.bands), np.uint64)
        sign(data, offsets, simplified(), MOST_CHARS, SHINGLE_WORDS, *_functions(self.bands * self.rows), keys)
        columns = [pa.array(np.diff(offsets)), _listed(keys, keys.any(axis=1))]
        return pa.record_batch(columns, schema=self.columns)


def signature_step(config: DataConfig) -> DocumentStep:
    """The step `signature`; it removes nothing."""
    return DocumentStep("signature", Sign(config.dedup.bands, config.dedup.rows))


def _listed(keys: NDArray[np.uint64], present: NDArray[np.bool_]) -> pa.Array:
    """A list of keys for each row that is present, null for the others."""
    ends = np.concatenate([[0], np.cumsum(np.where(present, keys.shape[1], 0))]).astype(np.int32)
    values = pa.array(keys[present].ravel())
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=pa.array(~present))


@cache
def simplified() -> NDArray[np.uint32]:
    """`bare_characters` with a space for what is in no word, and 0 for what is left out of words: accents alone."""
    letters = bare_characters().copy()
    letters[letters == 0] = ord(" ")
    letters[[code for code in chain(*_WITH_MARKS) if unicodedata.category(chr(code)) == "Mn"]] = 0
    return letters


@lru_cache
def _functions(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Factors and terms of the hash functions, below 2^61 - 1."""
    source = np.random.RandomState(1)  # its numbers never change (NEP 19)
    prime = (1 << 61) - 1
    return source.randint(1, prime, count, dtype=np.uint64), source.randint(0, prime, count, dtype=np.uint64)
