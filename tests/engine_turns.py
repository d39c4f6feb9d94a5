"""An engine's turns in the hand of a test: what has to be running, or waiting, is so however busy the machine is."""

import math
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from lifecycle.inference.engine import Engine
from lifecycle.testing.waiting import LIMIT_S


class Turns:
    """What the engine takes turns by: it waits before each until that is allowed.

    In a turn each request makes at most `scheduler.MAX_STEPS` tokens, and all that decode make as many.
    """

    def __init__(self, turn: Callable[[], None]) -> None:
        self._turn, self._changed = turn, threading.Condition()
        self._allowed, self._taken = 0.0, 0

    def take(self) -> None:
        """Called by the engine's thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._taken < self._allowed, LIMIT_S)
        try:
            self._turn()
        finally:
            with self._changed:
                self._taken += 1
                self._changed.notify_all()

    def let(self, count: float = 1) -> None:
        """Allows so many more turns, and does not wait for them."""
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        """Lets whole turns pass, one after the other, until it holds; the engine must have work so long."""
        while not holds():
            self.let()
            with self._changed:
                assert self._changed.wait_for(lambda: self._taken >= self._allowed, LIMIT_S)


@contextmanager
def held(engine: Engine) -> Generator[Turns]:
    """While the block runs, an engine takes the turns that the test allows; afterwards it runs on by itself."""
    turns = Turns(engine._runner.turn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._runner, "turn", turns.take)
        try:
            yield turns
        finally:
            turns.let(math.inf)
