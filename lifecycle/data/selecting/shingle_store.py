"""The shingles of the documents that may be duplicates, on disk: a file for each piece of the work, made in workers.

Comparing two documents takes two reads of some kilobytes, and memory stays the same however many there are.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.data.documents import Flags, Stretch
from lifecycle.data.ngrams import Hashes
from lifecycle.data.selecting.gram_lookup import mapped
from lifecycle.data.selecting.signatures import SHINGLES
from lifecycle.data.selecting.similarity import jaccard_similarity, shingles, sketch

CACHED = 512  # sets that each process keeps in memory; with 4,096, 1.6 GB of text took 1.50 GB and not 1.11
_BYTES = np.dtype(np.uint64).itemsize
_FIRSTS, _STARTS, _SIZES, _NAMES = "firsts.npy", "starts.npy", "sizes.npy", "names.txt"


def write_shingles(piece: tuple[Sequence[tuple[Stretch, Flags]], Path]) -> NDArray[np.int64]:
    """Writes the shingles of the chosen documents of some stretches to a file; returns the size of each set."""
    stretches, path = piece
    sizes: list[int] = []
    with open(path, "wb") as file:
        for stretch, chosen in stretches:
            for found in _shingles(stretch, chosen) if chosen.any() else ():
                file.write(found.tobytes())
                sizes.append(len(found))
    return np.array(sizes, np.int64)


def _shingles(stretch: Stretch, chosen: Flags) -> Iterator[Hashes]:
    """The shingles of the chosen documents: of their texts, or as they are there without one."""
    column = SHINGLES if SHINGLES in pq.read_schema(stretch.path).names else "text"
    for value in stretch.read([column])[column].filter(pa.array(chosen)):
        yield shingles(value.as_py()) if column == "text" else value.values.to_numpy()


def write_index(folder: Path, paths: Sequence[Path], sizes: Sequence[NDArray[np.int64]]) -> None:
    """Writes where the sets of these files are: those of the first file come first, sizes as `write_shingles` returns
    them."""
    np.save(folder / _FIRSTS, np.cumsum([0, *map(len, sizes)]))
    np.save(folder / _STARTS, np.concatenate([np.cumsum(own) - own for own in sizes]))
    np.save(folder / _SIZES, np.concatenate(list(sizes)))
    (folder / _NAMES).write_text("\n".join(path.name for path in paths))


class ShingleStore:
    """Sets of shingles in the files of a folder, by number. A context manager."""

    def __init__(self, folder: Path) -> None:
        names = (folder / _NAMES).read_text().split("\n")
        self._files = [os.open(folder / name, os.O_RDONLY) for name in names]
        self._firsts, self._starts, self._sizes = (mapped(folder / name) for name in (_FIRSTS, _STARTS, _SIZES))
        self._cached = lru_cache(CACHED)(self._read)

    def __enter__(self) -> "ShingleStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files:
            os.close(file)

    def similarity(self, one: int, other: int) -> float:
        """The Jaccard similarity of two documents."""
        return jaccard_similarity(self._cached(one), self._cached(other))

    def sketch(self, number: int) -> tuple[int, ...]:
        """The sketch of a document."""
        return sketch(self._cached(number))

    def _read(self, number: int) -> Hashes:
        file = self._files[np.searchsorted(self._firsts, number, side="right") - 1]
        data = os.pread(file, int(self._sizes[number]) * _BYTES, int(self._starts[number]) * _BYTES)
        return np.frombuffer(data, np.uint64)
