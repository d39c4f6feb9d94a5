"""What a process has done since it started, by cause, until a stage takes over the clock.

A process has one start, so this is a module: whoever ends a piece of work says what it was, and the causes add up to
the time since the process started, or since the previous stage. By the clock that nobody sets: the time of day may
jump.
"""

import os
import time
from pathlib import Path

_seconds: dict[str, float] = {}
_marked: float | None = None  # when the last piece of work ended, on the monotonic clock


def process_started() -> float:
    """When this process started, on the monotonic clock; on systems without /proc, when this module was imported."""
    stat, uptime = Path("/proc/self/stat"), Path("/proc/uptime")
    if not (stat.is_file() and uptime.is_file()):
        return IMPORTED
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # the 22nd field; the second may have spaces
    age = float(uptime.read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, age)


IMPORTED = time.monotonic()


def passed(cause: str) -> None:
    """The time since the last call, at first since the process started, was spent on `cause`."""
    global _marked
    now, before = time.monotonic(), process_started() if _marked is None else _marked
    _seconds[cause] = _seconds.get(cause, 0.0) + max(0.0, now - before)
    _marked = now


def taken(cause: str) -> dict[str, float]:
    """The seconds by cause, the time since the last call as `cause`; the next stage starts from nothing."""
    passed(cause)
    seconds = dict(_seconds)
    _seconds.clear()
    return seconds
