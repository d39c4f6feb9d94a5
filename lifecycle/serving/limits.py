"""How much a key may use: requests and tokens a minute.

A bucket holds a minute's worth and fills evenly; what is used is taken out, also more than there is. What must hold:
over any time, use is at most the rate times the time, one minute's worth, and the requests that were under way.
"""

import math
import time
from collections.abc import Callable

type Clock = Callable[[], float]


class Bucket:
    """Room for `per_minute` units. Not for several threads: the server's event loop has it alone."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level, self._at = float(per_minute), clock()

    def take(self, number: int) -> None:
        """Takes units out; the level may become negative."""
        self._fill()
        self._level -= number

    @property
    def left(self) -> int:
        """Whole units that may be taken now, at least 0."""
        self._fill()
        return max(math.floor(self._level), 0)

    @property
    def wait_s(self) -> float:
        """Seconds until a unit may be taken; 0 if one may be now."""
        self._fill()
        return max(1 - self._level, 0.0) * 60 / self.per_minute

    @property
    def full_s(self) -> float:
        """Seconds until the bucket is full."""
        self._fill()
        return (self.per_minute - self._level) * 60 / self.per_minute

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.per_minute / 60, float(self.per_minute))
        self._at = now
