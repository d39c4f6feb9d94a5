"""Words and hashed word n-grams, the units in which documents are compared: for deduplication and decontamination.

A word is a run of letters, digits and underscores, in lower case. Hashes have 64 bits and are the same in every process
and on every machine. Two different n-grams collide with a probability of about 2^-64, any two in ten thousand documents
of a thousand words with one of about 10^-6.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_NUM_CODES = 0x110000
_LAST_LETTERS = 0x40000  # behind them Unicode has no letters


def word_hashes(text: str) -> Hashes:
    """One hash per word of a text."""
    from lifecycle.data.compiled_words import hash_words

    data = np.frombuffer(text.encode(), np.uint8)
    hashes = np.empty(len(data) // 2 + 1, np.uint64)
    return hashes[: hash_words(data, folded_characters(), len(data), hashes)]


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Hashes of all runs of `n` words, `len(hashes) - n + 1` of them; empty for a shorter text."""
    from lifecycle.data.compiled_words import hash_grams

    grams = np.empty(max(0, len(hashes) - n + 1), np.uint64)
    hash_grams(hashes, n, grams)
    return grams


def distinct[T: np.generic](values: NDArray[T]) -> NDArray[T]:
    """The values in order, each once; the array is sorted in place. `np.unique` takes four times as long."""
    values.sort()
    is_first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]


@cache
def folded_characters() -> NDArray[np.uint32]:
    """Of each code point its lower case, of several characters the first; 0 if it is no part of a word."""
    folded = np.zeros(_NUM_CODES, np.uint32)
    folded[:_LAST_LETTERS] = np.fromiter(map(_folded, map(chr, range(_LAST_LETTERS))), np.uint32, _LAST_LETTERS)
    return folded


def _folded(character: str) -> int:
    return ord(character.lower()[0]) if character.isalnum() or character == "_" else 0
