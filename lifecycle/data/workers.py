"""Worker processes for the pipeline's map steps, and a separate one for Daft.

Workers are spawned, not forked (a fork would copy locks held by JAX's and Daft's threads), import only the data room,
and end with their parent, however it ends. Results keep the order of the work, so the number of workers has no effect.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any


def map_in_workers[T, R](function: Callable[[T], R], work: Sequence[T], workers: int) -> Iterator[R]:
    """Yields `function(item)` for each item, in order; in this process if there is one worker or one item."""
    if workers == 1 or len(work) <= 1:
        yield from map(function, work)
        return
    with _pool(min(workers, len(work))) as pool:
        with _bare_main():
            results = [pool.submit(function, item) for item in work]
        results.reverse()  # popped from the end, so that a result's memory is freed once it is used
        try:
            while results:
                yield results.pop().result()
        finally:
            for result in results:
                result.cancel()


def call_alone[R](function: Callable[..., R], *arguments: Any) -> R:
    """`function(*arguments)` in a process of its own, which ends with the call and frees its threads and memory."""
    with _pool(1) as pool:
        with _bare_main():
            result: Future[R] = pool.submit(function, *arguments)
        return result.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Exits when the parent does: a killed parent cannot stop its pool, and the workers would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _bare_main() -> Iterator[None]:
    """Hides the main module while workers start: spawn would import it in each of them, and JAX with it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
