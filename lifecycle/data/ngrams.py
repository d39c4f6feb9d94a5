"""Words and hashed word n-grams, the units in which documents are compared: for deduplication and decontamination.

A word is a run of letters, digits and underscores, in lower case. Hashes have 64 bits and are the same in every process
and on every machine. Two different n-grams collide with a probability of about 2^-64, any two in ten thousand documents
of a thousand words with one of about 10^-6.
"""

import unicodedata
from functools import cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_NUM_CODES = 0x110000
_LAST_LETTERS = 0x40000  # behind them Unicode has no letters
# Alphabets with accents, kana, forms in old character sets, letters of formulas. Ideographs and Hangul have no others.
_WITH_FORMS = (range(0x80, 0x3100), range(0xFB00, 0xFFF0), range(0x1D400, 0x1D800))


def word_hashes(text: str, characters: NDArray[np.uint32] | None = None) -> Hashes:
    """One hash per word of a text. `characters` says what is a letter: by default `folded_characters()`."""
    from lifecycle.data.compiled_words import hash_words

    data = np.frombuffer(text.encode(), np.uint8)
    hashes = np.empty(len(data) // 2 + 1, np.uint64)
    letters = folded_characters() if characters is None else characters
    return hashes[: hash_words(data, letters, len(data), hashes)]


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


@cache
def bare_characters() -> NDArray[np.uint32]:
    """`folded_characters` of what must be found in any spelling: without accents, wide and other forms of a letter as
    the letter itself, and an underscore is no part of a word, since it may mark emphasis."""
    bare = folded_characters().copy()
    bare[ord("_")] = 0
    for code in chain(*_WITH_FORMS):
        base, *marks = unicodedata.normalize("NFKD", chr(code))
        if bare[code] and base.isalnum() and all(unicodedata.combining(mark) for mark in marks):
            bare[code] = _folded(base)
    return bare


def _folded(character: str) -> int:
    return ord(character.lower()[0]) if character.isalnum() or character == "_" else 0
