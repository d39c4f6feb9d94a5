"""Folders of isolated work, which tests in other processes have too."""

import tempfile
import time
from pathlib import Path


def scratch_folders() -> set[str]:
    """Those that are there now, by name."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("isolated-*")}


def left_behind(before: set[str], within_s: float = 30.0) -> set[str]:
    """The folders that are new and stay for that long: those of work beside this are removed meanwhile."""
    left, end = scratch_folders() - before, time.monotonic() + within_s
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left &= scratch_folders()
    return left
