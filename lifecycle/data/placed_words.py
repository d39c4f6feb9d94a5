"""Words of a text with their places in it. Unlike in `ngrams.py` an ideograph is a word of its own.

A word is a run of letters, digits and underscores, in lower case. Passages of documents are known by these words.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.ngrams import Hashes, folded_characters

# Letters of scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, ideographs.
_ALONE = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF),
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    """The words of a text: their hashes, and the bytes of each."""

    hashes: Hashes
    begins: NDArray[np.int32]
    ends: NDArray[np.int32]

    def where(self, flags: NDArray[np.bool_]) -> "Words":
        """Some of them."""
        return Words(self.hashes[flags], self.begins[flags], self.ends[flags])

    def __len__(self) -> int:
        return len(self.hashes)


def words_of(text: NDArray[np.uint8], characters: NDArray[np.uint32] | None = None) -> Words:
    """The words of a UTF-8 text: runs of letters, digits and underscores, in lower case; an ideograph is a word, unless
    `characters` says what else is a letter, such as `bare_characters()`."""
    from lifecycle.data.compiled_words import find_words

    most = len(text) // 2 + 1  # a letter and a blank, or three bytes of an ideograph
    hashes, begins, ends = np.empty(most, np.uint64), np.empty(most, np.int32), np.empty(most, np.int32)
    num = find_words(text, letters() if characters is None else characters, hashes, begins, ends)
    return Words(hashes[:num], begins[:num], ends[:num])


@cache
def letters() -> NDArray[np.uint32]:
    """Of each code point its lower case, 0 if it is no part of a word, with the upper bit if it is one of its own."""
    table = folded_characters().copy()
    for first, last in _ALONE:
        own = table[first : last + 1]
        own[own > 0] |= np.uint32(1 << 31)
    return table
