"""Scripts: in which a letter is, and in which the languages that fastText tells apart are written.

A letter's script is the first word of its name in Unicode's tables, which Python has; the table of languages follows
the Wikipedias from which the model has learned.
"""

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

UNDETERMINED = "und"  # ISO 639-2 code of a text whose language is not known
IS_UPPER = 0x40  # a bit beside the number of a letter's script
SCRIPT_BITS = 0x3F
_NUM_CODES = 0x110000
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")
LATIN = 1  # the number of its script
# Languages in other scripts than Latin, some of them in several. All others are in Latin.
_LANGUAGES = {
    "CYRILLIC": "av az ba be bg bxr ce cv kk krc kv ky lez mhr mk mn mrj myv os ro ru rue sah sh sr tg tk tt tyv uk uz "
    "xal",
    "ARABIC": "ar arz az azb ckb fa kk ku ky lrc mzn pnb ps sd tg ug ur",
    "DEVANAGARI": "bh gom hi mai mr ne new sa sd",
    "BENGALI": "as bn bpy",
    "CJK": "ja ko wuu yue zh", "HIRAGANA": "ja", "KATAKANA": "ja", "KATAKANA-HIRAGANA": "ja", "BOPOMOFO": "wuu yue zh",
    "HANGUL": "ko", "HEBREW": "he yi", "GEORGIAN": "ka xmf", "ARMENIAN": "hy", "ETHIOPIC": "am", "GREEK": "el",
    "GUJARATI": "gu", "GURMUKHI": "pa", "KANNADA": "kn", "KHMER": "km", "LAO": "lo", "MALAYALAM": "ml",
    "MONGOLIAN": "mn", "MYANMAR": "my", "ORIYA": "or", "SINHALA": "si", "TAMIL": "ta", "TELUGU": "te", "THAANA": "dv",
    "THAI": "th", "TIBETAN": "bo",
}  # fmt: skip
_ALSO_LATIN = frozenset(("az", "ku", "ro", "sh", "sr", "tk", "tt", "uz"))
_NAMES = ("LATIN", *_LANGUAGES)


@cache
def letter_classes() -> NDArray[np.uint8]:
    """Of each code point: the number of its script, from 1, and `IS_UPPER` for a capital; 0 for what is no letter."""
    numbers = {name: number for number, name in enumerate(_NAMES, 1)}
    classes = np.zeros(_NUM_CODES, np.uint8)
    for code in range(_NUM_CODES):
        character = chr(code)
        if character.isalpha():
            name = unicodedata.name(character, "")
            for width in _WIDTHS:
                name = name.removeprefix(width)
            classes[code] = numbers.get(name.split(" ")[0], len(_NAMES) + 1) | IS_UPPER * character.isupper()
    return classes


def scripts_of(language: str) -> int:
    """The scripts that a language is written in, as bits: bit `n` is the script of number `n`."""
    others = [number for number, name in enumerate(_NAMES, 1) if language in _LANGUAGES.get(name, "").split()]
    in_latin = [] if others and language not in _ALSO_LATIN else [LATIN]
    return sum(1 << number for number in (*others, *in_latin))
