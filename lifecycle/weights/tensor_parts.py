"""Reads parts of row-major tensors from a file without mapping it: mapped pages count as this process's memory. What
must hold: memory holds the requested part, and `CHUNK_BYTES` more if it cuts through rows."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lifecycle.weights.families.layout import Index, Shape
from lifecycle.weights.families.settings import WeightsError

CHUNK_BYTES = 64 << 20


def full_index(shape: Shape) -> Index:
    """The index of a full array."""
    return tuple(slice(0, size) for size in shape)


def read_part(shape: Shape, dtype: np.dtype, index: Index, read_rows: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """The part of a tensor that `index` selects; `read_rows(start, stop)` reads rows of its first dimension, in
    `dtype`."""
    rows, *rest = index
    if all(part.stop - part.start == size for part, size in zip(rest, shape[1:], strict=True)):
        return read_rows(rows.start, rows.stop)
    part = np.empty([one.stop - one.start for one in index], dtype)
    step = max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    for start in range(rows.start, rows.stop, step):
        stop = min(rows.stop, start + step)
        part[start - rows.start : stop - rows.start] = read_rows(start, stop)[(slice(None), *rest)]
    return part


def read_bytes(path: Path, offset: int, count: int) -> np.ndarray:
    """`count` bytes of a file, as uint8; raises `WeightsError` if the file is shorter."""
    data = np.empty(count, np.uint8)
    view, done = memoryview(data), 0
    with open(path, "rb", buffering=0) as file:
        while done < count:  # one call reads at most 2 GiB
            read = os.preadv(file.fileno(), [view[done:]], offset + done)
            if not read:
                raise WeightsError(f"{path}: ends at byte {offset + done}, before its last tensor; copy it again")
            done += read
    return data
