"""Characters of UTF-8, as Arrow holds texts, for loops that Numba compiles. It takes a process 1.4 s to import and
load, so all `compiled_*.py` are imported late."""

from typing import Any

import numpy as np

from lifecycle.core.compiled import inlined


@inlined
def decoded(text: Any, at: int) -> Any:
    """The character that starts at a place, and the place behind it."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | (np.int64(text[at + 1]) & 0x3F), at + 2
    if first < 0xF0:
        return (first & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | (np.int64(text[at + 2]) & 0x3F), at + 3
    middle = (np.int64(text[at + 1]) & 0x3F) << 12 | (np.int64(text[at + 2]) & 0x3F) << 6
    return (first & 0x07) << 18 | middle | (np.int64(text[at + 3]) & 0x3F), at + 4
