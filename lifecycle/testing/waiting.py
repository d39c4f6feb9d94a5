"""Waiting for other threads and processes, so that no test depends on how busy the machine is."""

import time
from collections.abc import Callable

LIMIT_S = 1800  # ends a test that hangs; one that works takes seconds, or minutes on a busy machine


def wait_until(holds: Callable[[], bool], poll_s: float = 0.01) -> None:
    """Returns once `holds()` is true; fails the test on a timeout."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, f"condition not met within {LIMIT_S} s"
        time.sleep(poll_s)
