"""A file of vectors by key, to which vectors are added as they are computed, so that none is computed twice.

Records of one size follow the line of settings: a key of 16 bytes, and the vector in whole numbers. What must hold:
after a kill at any moment the whole records count, and the rest of one is cut off. In memory are 24 bytes a vector.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.annotation.claimed import claimed

KEY_BYTES = 16

type Vectors = NDArray[np.int16]  # [vector, dimension]


class VectorFile:
    """A context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any], dimensions: int) -> None:
        """Opens the file, and makes it if it is not there. Raises what `claimed` raises."""
        self._path = path
        self._record = np.dtype([("key", f"S{KEY_BYTES}"), ("vector", "<i2", (dimensions,))])
        self._file = claimed(path, {**settings, "dimensions": dimensions})
        self._begin = self._file.tell()
        self._number = (self._file.seek(0, 2) - self._begin) // self._record.itemsize
        self._file.truncate(self._begin + self._number * self._record.itemsize)
        self._keys, self._places = self._index()

    def _index(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """The keys in ascending order, and the place of each record."""
        keys = self._records()["key"]
        different, places = np.unique(keys, return_index=True)
        return different, places

    def _records(self) -> NDArray[np.void]:
        if not self._number:
            return np.empty(0, self._record)  # an empty file cannot be mapped
        return np.memmap(self._path, self._record, "r", self._begin, (self._number,))

    def __enter__(self) -> "VectorFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def lacks(self, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Which of these had no vector when the file was opened, or last read from."""
        wanted = np.array(keys, self._keys.dtype)
        if not len(self._keys):
            return np.ones(len(wanted), bool)
        return self._keys[np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)] != wanted

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Adds vectors, one for each key."""
        records = np.empty(len(keys), self._record)
        records["key"], records["vector"] = keys, vectors
        self._file.write(records.tobytes())
        self._file.flush()
        self._number += len(keys)

    def read(self, keys: Sequence[bytes]) -> Vectors:
        """The vectors of keys that are all in the file."""
        if self.lacks(keys).any():
            self._keys, self._places = self._index()
        assert not self.lacks(keys).any(), "each was added"
        wanted = np.array(keys, self._keys.dtype)
        return self._records()["vector"][self._places[np.searchsorted(self._keys, wanted)]]
