"""Functions that may hang, in threads, each with a time limit.

A thread cannot be ended: one that hangs is left behind, and ends with the process.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failed:
    """Why a function has no result: what it raised, or that its time was over."""

    why: str
    is_late: bool = False


def in_threads[T](functions: Sequence[Callable[[], T]], limit_s: float, at_once: int) -> list[T | Failed]:
    """The result of each function, in their order, `at_once` of them running at a time, each for `limit_s` at most."""
    found: dict[int, T | Failed] = {}
    finished: queue.SimpleQueue[tuple[int, T | Failed]] = queue.SimpleQueue()
    running: dict[int, float] = {}  # until when
    waiting = iter(enumerate(functions))
    while len(found) < len(functions):
        while len(running) < at_once and (item := next(waiting, None)) is not None:
            running[item[0]] = time.monotonic() + limit_s
            threading.Thread(target=_run, args=(*item, finished), daemon=True).start()
        try:
            number, result = finished.get(timeout=max(0.0, min(running.values()) - time.monotonic()))
        except queue.Empty:
            late = [number for number, until in running.items() if until <= time.monotonic()]
            for number in late:
                del running[number]
                found[number] = Failed(f"no answer in {limit_s:g} s", is_late=True)
            continue
        if running.pop(number, None) is not None:  # else it was given up before
            found[number] = result
    return [found[number] for number in range(len(functions))]


def _run(number: int, function: Callable[[], Any], finished: "queue.SimpleQueue[tuple[int, Any]]") -> None:
    try:
        finished.put((number, function()))
    except Exception as error:  # the border of a thread: the reason goes to the caller
        finished.put((number, Failed(f"{type(error).__name__}: {error}")))
