"""Texts as Arrow holds them: the bytes that compiled loops read."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def utf8(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of texts without null, and where each begins and ends in them. Neither can be written to, whoever made
    the texts: Numba compiles a loop anew for arrays that can."""
    array = texts.cast(pa.large_string())
    _, offsets, data = array.buffers()
    begins = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    characters = np.frombuffer(data or b"", np.uint8)
    begins.flags.writeable = characters.flags.writeable = False
    return characters, begins
