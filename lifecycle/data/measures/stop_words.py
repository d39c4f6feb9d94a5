"""Stop words: lists of words that prose in a language has, by which text is told from lists of terms and the like.

A text's word is one of the list's in any case and without the marks around it: what `str.casefold` makes of each
character decides, where that is one character.
"""

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.measures.character_classes import SOLID, character_classes
from lifecycle.data.mixing import MIX, MULTIPLIER

type Lists = tuple[tuple[str, tuple[str, ...]], ...]  # by language

_NUM_CODES = 0x110000
_LAST_LETTERS = 0x40000  # behind them Unicode has no letters


class StopWords(NamedTuple):
    """The lists as compiled loops read them: list `n` is `hashes[begins[n]:begins[n + 1]]`; `lengths[n]` has a bit for
    each number of solid characters that one of its words has. The last list is empty."""

    hashes: NDArray[np.uint64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    folded: NDArray[np.uint32]  # what each code point counts as


@cache
def stop_words(lists: Lists) -> StopWords:
    """The lists for compiled loops."""
    words = [list(map(folded, own)) for _, own in lists]
    return StopWords(
        np.array([_hash(word) for own in words for word in own], np.uint64),
        np.cumsum([0, *map(len, words), 0]),
        np.array([*(_lengths(own) for own in words), 0], np.int64),
        folded_characters(),
    )


@cache
def folded_characters() -> NDArray[np.uint32]:
    """Of each code point the one that all its cases have in common."""
    folded = np.arange(_NUM_CODES, dtype=np.uint32)
    folded[:_LAST_LETTERS] = np.fromiter(map(_one, map(chr, range(_LAST_LETTERS))), np.uint32, _LAST_LETTERS)
    return folded


def is_found(word: str) -> bool:
    """Whether a text may have this word: without blanks, and with no mark at its begin or end."""
    has_blanks = word.split() != [word]
    return not has_blanks and all(character_classes()[ord(end)] & SOLID for end in (word[0], word[-1]))


def folded(word: str) -> tuple[int, ...]:
    """What the word counts as."""
    return tuple(map(_one, unicodedata.normalize("NFC", word)))


def _one(character: str) -> int:
    folded = character.casefold()
    return ord(folded) if len(folded) == 1 else ord(character)


def _hash(word: tuple[int, ...]) -> int:
    key = int(MIX)
    for code in word:
        key = ((key ^ code) * int(MULTIPLIER)) & (2**64 - 1)
    return key ^ (key >> 32)


def _lengths(words: list[tuple[int, ...]]) -> int:
    classes = character_classes()
    return sum(1 << num for num in {sum(bool(classes[code] & SOLID) for code in word) for word in words})
