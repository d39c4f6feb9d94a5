"""Progress: a sink with three calls, silent unless a front end replaces it, and an estimate of the time left."""

from collections import deque
from typing import Any, Protocol

AT_ONCE_S = 1.0  # what is done in a stage's first second was there already, such as an earlier run's partitions
RECENT_S = 60.0  # the least time over which the speed is measured
POINTS = 64  # moments remembered of that time


class Progress(Protocol):
    """Receives a stage's progress. `total` and `done` count the same unit (files, steps, requests).

    `start` names a stage or a part of one; `update` may give the total once it is known.
    """

    def start(self, stage: str, total: int | None = None) -> None:
        """A stage begins; `total` steps are expected, None if unknown."""
        ...

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """`done` steps are finished; `metrics` are shown with them."""
        ...

    def note(self, text: str) -> None:
        """A line of text for the user."""
        ...


class Silent:
    """Discards progress: for tests and for library use."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Shows nothing."""
        del stage, total

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Shows nothing."""
        del done, total, metrics

    def note(self, text: str) -> None:
        """Shows nothing."""
        del text


class TimeLeft:
    """The time that a stage still needs, at its speed of late: of the last minute or, if that is longer, of the second
    half of its time. Units differ in size, so a shorter time says little; a longer one remembers a beginning that was
    slow (programs are compiled) or quick (an earlier run had done the work). Therefore the speed counts from the first
    update, and from the last one of the first second. Times are of one monotonic clock, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._points: deque[tuple[float, int]] = deque()  # (when, how many were done)

    def update(self, done: int, now: float) -> None:
        """`done` units are finished."""
        points, span = self._points, max(RECENT_S, (now - self._began) / 2)
        if now - self._began < AT_ONCE_S:
            points.clear()
        elif len(points) > 2 and now - points[-2][0] < span / POINTS:
            points.pop()
        points.append((now, done))
        while len(points) > 2 and points[1][0] <= now - span:
            points.popleft()

    def seconds(self, total: int | None, now: float) -> float | None:
        """Seconds until `total` units are finished; None while nobody can know. Time passes between updates, but a unit
        that is late takes nothing from the time of those behind it."""
        if total is None or len(self._points) < 2:
            return None
        (first, begin), (last, done) = self._points[0], self._points[-1]
        if done <= begin:
            return None
        of_one = (last - first) / (done - begin)
        return max(0.0, (total - done) * of_one - min(now - last, of_one))
