"""Source code, counted, compiled: its lines and classes of characters in one pass."""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled
from lifecycle.data.measures.character_classes import ALPHABETIC, ALPHANUMERIC
from lifecycle.data.measures.compiled_characters import decoded

TALLY = np.dtype([(name, np.int64) for name in ("chars", "alphabetic", "alphanumeric", "lines", "longest_line")])
_NEWLINE = ord("\n")


@compiled
def measure_code(data: Any, offsets: Any, chosen: Any, classes: Any, tallies: Any) -> None:
    """Fills in a row of `tallies` (`TALLY`) for each text that is chosen. A line ends at a line feed."""
    for text in range(len(chosen)):
        if not chosen[text]:
            continue
        tally, at, end = tallies[text], offsets[text], offsets[text + 1]
        chars = alphabetic = alphanumeric = length = 0
        while at < end:
            code, at = decoded(data, at)
            kind = np.int64(classes[code])
            chars += 1
            alphabetic += kind & ALPHABETIC != 0
            alphanumeric += kind & ALPHANUMERIC != 0
            length += 1
            if code == _NEWLINE or at == end:
                tally.lines += 1
                tally.longest_line = max(tally.longest_line, length - (code == _NEWLINE))
                length = 0
        tally.chars, tally.alphabetic, tally.alphanumeric = chars, alphabetic, alphanumeric
