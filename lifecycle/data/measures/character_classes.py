"""What each character is to the measures of texts, as bits: a table that compiled loops read.

Blanks, letters and digits are what `str.isspace`, `str.isalpha` and `str.isalnum` say.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SPACE, ALPHABETIC, ALPHANUMERIC, SOLID, TERMINAL, ELLIPSIS, BULLET = 1, 2, 4, 8, 16, 32, 64  # bits of a class
# `SOLID`: neither a blank nor punctuation, which is ASCII's, control characters, and those that CCNet lists (Wenzek et
# al. 2020, arXiv:1911.00359, `text_normalizer.py`; its digit among them).
_PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\xab\xb4\xbb\u2013\u2014\u2019\u201c\u201d\u201e\u2026\u2236\u2501\u25ba\u3001"
    "\u3002\u3008\u3009\u300a\u300b\u300c\u300d\u3010\u3011\uff01\uff05\uff08\uff09\uff0c\uff0e\uff11\uff1a\uff1b\uff1f"
    "\uff5e"
)
# Ends of sentences in all scripts, as FineWeb counts them: Unicode's property Sentence_Terminal but for what versions
# 15.1 and later have added, and three marks of Khmer.
_TERMINAL = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 "
    "17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 "
    "2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb "
    "fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 "
    "111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 "
    "1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 "
    "16b44 16e98 1bc9f 1da88"
)
_NUM_CODES = 0x110000
_LAST_LETTERS = 0x40000  # behind them Unicode has neither blanks nor letters


@cache
def character_classes() -> NDArray[np.uint8]:
    """The bits of each code point."""
    characters = [chr(code) for code in range(_LAST_LETTERS)]
    classes = np.zeros(_NUM_CODES, np.uint8)
    for bit, has_class in ((SPACE, str.isspace), (ALPHABETIC, str.isalpha), (ALPHANUMERIC, str.isalnum)):
        classes[:_LAST_LETTERS] |= np.fromiter(map(has_class, characters), np.uint8, _LAST_LETTERS) * bit
    classes[classes & SPACE == 0] |= SOLID
    classes[[*map(ord, _PUNCTUATION), *range(0x20), *range(0x7F, 0xA0)]] &= 0xFF - SOLID
    for span in _TERMINAL.split():
        begin, _, end = span.partition("-")
        places = slice(int(begin, 16), int(end or begin, 16) + 1)
        classes[places] = classes[places] & (0xFF - SOLID) | TERMINAL
    classes[[ord("-"), ord("•")]] |= BULLET
    classes[ord("…")] |= ELLIPSIS
    return classes
