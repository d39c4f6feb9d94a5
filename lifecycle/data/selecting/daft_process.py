"""The process in which Daft runs, what it is asked there, and what it has written.

That process imports this module, so it imports little: with the rest of the room it took 0.6 CPU-seconds to start, of
which Daft needs 0.3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.data.tagging.workers import Alone

BLOCK_ROWS = 4_000_000  # keys that are grouped at a time, of documents or passages: about 1 GB of memory
OPEN_BLOCKS = 512  # of them, to which the keys are distributed in one pass: as many files are open

type Ordinals = NDArray[np.int64]


class DaftProcess(Alone):
    """A process in which Daft starts meanwhile, on the Ray cluster at an address or on this machine."""

    def __init__(self, address: str | None) -> None:
        super().__init__()
        self._address = address
        self.start(_start, address)

    def write_links(self, keys: Path, columns: Mapping[str, Sequence[str]], out: Path) -> None:
        """`daft_adapter.write_links`."""
        self(_write_links, keys, columns, out, self._address)

    def write_limits(self, keys: Path, most: int, out: Path, num_parts: int) -> None:
        """`daft_adapter.write_limits`."""
        self(_write_limits, keys, most, out, num_parts, self._address)


def read_links(folder: Path, name: str, num_own: int) -> tuple[Ordinals, Ordinals]:
    """Of the links that have been written: the firsts, and the documents that each has a key in common with; without
    those that documents of earlier corpora, from `num_own` on, alone have in common."""
    links = pq.read_table(folder / f"{name}.parquet")
    firsts = links["first"].to_numpy()
    end = np.searchsorted(firsts, num_own)  # the firsts ascend
    return firsts[:end], links["ordinal"].to_numpy()[:end]


def _start(address: str | None) -> None:
    from lifecycle.data.selecting import daft_adapter

    daft_adapter.use_engine(address)


def _write_links(keys: Path, columns: Mapping[str, Sequence[str]], out: Path, address: str | None) -> None:
    from lifecycle.data.selecting import daft_adapter

    daft_adapter.use_engine(address)
    daft_adapter.write_links(keys, columns, out, BLOCK_ROWS, OPEN_BLOCKS)


def _write_limits(keys: Path, most: int, out: Path, num_parts: int, address: str | None) -> None:
    from lifecycle.data.selecting import daft_adapter

    daft_adapter.use_engine(address)
    daft_adapter.write_limits(keys, most, out, num_parts, BLOCK_ROWS)
