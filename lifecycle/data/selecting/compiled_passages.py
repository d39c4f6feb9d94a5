"""The compiled loops over passages, by Numba: lines and which of them are code, hashes of runs of words, minima in
windows. Imported late, as `compiled_words.py` is.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.mixing import MIX, MULTIPLIER

BLANK, PROSE, CODE = 0, 1, 2  # kinds of lines
_INDENT, _FENCE = 4, 3  # columns that make a line code, and marks that make it a fence
_SPACE, _TAB, _NEWLINE, _BACKTICK, _TILDE, _DOT, _COLON = 32, 9, 10, 96, 126, 46, 58
_HALF = np.uint64(32)
_OTHER = np.uint64(0xBF58476D1CE4E5B9)  # the factor of the second hash; splitmix64's


@compiled
def find_lines(text: Any, begins: Any, kinds: Any) -> int:
    """Fills in where each line of a text begins, and its kind; returns how many there are.

    Code is what Markdown takes for it, lines between fences and those indented by four columns, and directives of
    reStructuredText, `.. name::`, without which the code below them is none.
    """
    num = at = 0
    fence = 0  # the mark of the one that is open
    while at < len(text):
        begins[num] = at
        columns = 0
        while at < len(text) and (text[at] == _SPACE or text[at] == _TAB):
            columns += _INDENT if text[at] == _TAB else 1
            at += 1
        mark, marks = np.int64(text[at]) if at < len(text) else _NEWLINE, 0
        while at + marks < len(text) and text[at + marks] == mark:
            marks += 1
        is_fence = columns < _INDENT and marks >= _FENCE and mark in (_BACKTICK, _TILDE)
        if is_fence and (fence in (0, mark)):
            fence = 0 if fence else mark
            kinds[num] = CODE
        elif fence:
            kinds[num] = CODE
        elif mark == _NEWLINE:
            kinds[num] = BLANK
        else:
            kinds[num] = CODE if columns >= _INDENT else PROSE
        is_comment, colons = mark == _DOT and marks == 2, 0
        while at < len(text) and text[at] != _NEWLINE:
            colons = colons + 1 if text[at] == _COLON else 0
            if is_comment and colons == 2:
                kinds[num] = CODE
            at += 1
        at += 1
        num += 1
    return num


@inlined
def _spread(value: Any) -> Any:
    """One-to-one; every bit depends on all of the value's."""
    value = (value ^ (value >> _HALF)) * MIX
    value = (value ^ (value >> _HALF)) * MIX
    return value ^ (value >> _HALF)


@compiled
def hash_runs(words: Any, lows: Any, highs: Any, keys: Any) -> None:
    """Fills in a key of 128 bits, two numbers, for each run of words, `words[low:high]`."""
    for run in range(len(lows)):
        one, other = np.uint64(highs[run] - lows[run]), MIX
        for at in range(lows[run], highs[run]):
            one = one * MULTIPLIER + words[at]
            other = (other ^ words[at]) * _OTHER
            other ^= other >> _HALF
        keys[run, 0], keys[run, 1] = _spread(one), _spread(other)


@compiled
def least_in_windows(values: Any, size: int, places: Any) -> None:
    """Fills in where the least of each `size` values in a row is, the last of equal ones; a value is compared twice on
    average, however large the windows are."""
    least = -1
    for window in range(len(places)):
        last = window + size - 1
        if least < window:
            least = window
            for at in range(window + 1, last + 1):
                if values[at] <= values[least]:
                    least = at
        elif values[last] <= values[least]:
            least = last
        places[window] = least
