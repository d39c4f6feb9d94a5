"""What each character is to the measures of prose, as bits: a table that compiled loops read.

A blank or a letter is what `str.isspace` and `str.isalpha` say; a line ends where `str.splitlines` ends it.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SPACE, ALPHABETIC, LINE_BREAK, BULLET, STRIPPED = 1, 2, 4, 8, 16  # bits of a character's class
BULLETS = "•‣◦●▪*+-"
STRIPPED_CHARS = ".,;:!?\"'()[]"
_NUM_CODES = 0x110000


@cache
def character_classes() -> NDArray[np.uint8]:
    """The bits of each code point."""
    characters = [chr(code) for code in range(_NUM_CODES)]
    classes = np.fromiter(map(str.isspace, characters), np.uint8, _NUM_CODES) * SPACE
    classes |= np.fromiter(map(str.isalpha, characters), np.uint8, _NUM_CODES) * ALPHABETIC
    for bit, members in (
        (LINE_BREAK, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        (BULLET, BULLETS),
        (STRIPPED, STRIPPED_CHARS),
    ):
        classes[[ord(character) for character in members]] |= bit
    return classes
