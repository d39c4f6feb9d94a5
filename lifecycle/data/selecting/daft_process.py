"""The process in which Daft runs, and what it is asked there.

That process imports this module, so it imports little: with the rest of the room it took 0.6 CPU-seconds to start, of
which Daft needs 0.3.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lifecycle.data.tagging.workers import Alone, call_alone

BLOCK_ROWS = 4_000_000  # keys that are grouped at a time, of documents or passages: about 1 GB of memory
OPEN_BLOCKS = 512  # of them, to which the keys are distributed in one pass: as many files are open


class DaftProcess(Alone):
    """A process in which Daft starts meanwhile, on the Ray cluster at an address or on this machine."""

    def __init__(self, address: str | None) -> None:
        super().__init__()
        self._address = address
        self.start(_start, address)

    def write_links(self, keys: Path, columns: Mapping[str, Sequence[str]], out: Path) -> None:
        """`daft_adapter.write_links`."""
        self(_write_links, keys, columns, out, self._address)


def write_limits(keys: Path, most: int, out: Path, num_parts: int, address: str | None) -> None:
    """`daft_adapter.write_limits` in a process of its own."""
    call_alone(_write_limits, keys, most, out, num_parts, address)


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
