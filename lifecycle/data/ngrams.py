"""Words and hashed word n-grams, for quality rules, deduplication and decontamination.

Hashes are 64 bits and the same in every process and on every machine: a blake2b per word, combined by a polynomial
with an odd multiplier. Two different n-grams collide with a probability of about 2^-64, any two in ten thousand
documents of a thousand words with one of about 10^-6.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, odd


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters, digits and underscores: the units in which texts are compared."""
    return _WORD.findall(text.lower())


def word_hashes(words: Sequence[str]) -> Hashes:
    """One hash per word."""
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Hashes of all runs of `n` words, `len(hashes) - n + 1` of them; empty for a shorter text."""
    if len(hashes) < n:
        return np.empty(0, np.uint64)
    total = hashes[: len(hashes) - n + 1].copy()
    for offset in range(1, n):
        total *= _MULTIPLIER
        total += hashes[offset : len(hashes) - n + 1 + offset]
    return total


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
