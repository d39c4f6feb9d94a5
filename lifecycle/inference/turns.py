"""Who is told what a runner's turns depend on besides the turns before them.

All else in a turn follows from the requests that the runner has and from what the devices computed. So runners that
begin alike, hear of the same requests in the same turns, and take the same values from clocks, make the same
dispatches: processes that share a mesh keep in step by this (`inference/hosts.py`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

from lifecycle.inference.generation import Generation


class Witness(Protocol):
    """Is told of a runner's turns and dispatches in the runner's thread, before they happen."""

    def begin(self, arrived: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        """A turn begins: which requests were accepted since the one before, in order, and which of all leave because
        they were cancelled."""
        ...

    def agreed[T: (int, bool)](self, value: T) -> T:
        """The value that all processes use for one that depends on a clock."""
        ...

    def launch(self, rows: Any) -> None:
        """The arguments of the dispatch that follows, arrays in host memory."""
        ...


class Nobody:
    """The witness of a runner that works alone."""

    def begin(self, arrived: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        """Nothing to tell."""

    def agreed[T: (int, bool)](self, value: T) -> T:
        """The value."""
        return value

    def launch(self, rows: Any) -> None:
        """Nothing to tell."""


ALONE = Nobody()
