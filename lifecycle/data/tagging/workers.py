"""Worker processes of this machine for the pipeline's map steps, and a separate one for Daft.

Workers are spawned, not forked (a fork would copy locks held by JAX's and Daft's threads), import only the data room,
and end with their parent, however it ends. A worker that dies takes no other item of the work with it.
"""

import atexit
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any, Self

from lifecycle.data.ngrams import word_hashes


class WorkerDiedError(RuntimeError):
    """The process that did an item of the work ended: killed, out of memory, or by a fault in a library."""


class Workers:
    """So many processes, which stay until the end of this context manager: one costs a second of CPU time to start. If
    it is one, the work is done in this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def start(self) -> None:
        """Lets the processes start meanwhile, if that is not done by what they are given."""
        if self.count > 1 and self._pool is None:
            self._pool = _pool(self.count, _load)
            with _bare_main(), suppress(BrokenProcessPool):  # the first work finds out, too
                for _ in range(self.count):
                    self._pool.submit(int)

    def results[T, R](
        self, function: Callable[[T], R], work: Sequence[T], attempts: int, apart: bool = False
    ) -> Iterator[tuple[int, R | WorkerDiedError]]:
        """Yields the number of each item and `function(item)` as they are ready. Items whose processes die are done
        again, each alone, up to `attempts` times in all. A single item is done in this process, unless `apart`."""
        if self.count == 1 or (len(work) <= 1 and not apart):
            yield from enumerate(map(function, work))
            return
        if len(work) == 1:
            yield 0, _alone(function, work[0], attempts)
            return
        waiting = deque(range(len(work)))
        while waiting:
            for number in (yield from self._until_one_dies(function, work, waiting)):
                yield number, _alone(function, work[number], attempts - 1)

    def _until_one_dies[T, R](
        self, function: Callable[[T], R], work: Sequence[T], waiting: deque[int]
    ) -> Generator[tuple[int, R], None, list[int]]:
        """Does what waits until all is done or a process dies; returns the items that this has ended. Few items are in
        the pool's queue at a time: their arguments take memory."""
        running: dict[Future[R], int] = {}
        lost: list[int] = []
        self.start()
        pool = self._pool
        assert pool is not None
        try:
            while (waiting or running) and not lost:
                try:
                    with _bare_main():
                        while waiting and len(running) < 2 * self.count:
                            running[pool.submit(function, work[waiting[0]])] = waiting[0]
                            waiting.popleft()
                except BrokenProcessPool:  # what runs says so below; if nothing does, a process has died without work
                    if not running:
                        lost.append(waiting.popleft())
                for done in wait_for(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(done)
                    if isinstance(done.exception(), BrokenProcessPool):
                        lost.append(number)
                    else:
                        yield number, done.result()
            return sorted([*lost, *running.values()])
        finally:
            if lost or running:  # the pool is broken, or has work that nobody asks for any more
                self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _alone[T, R](function: Callable[[T], R], item: T, attempts: int) -> R | WorkerDiedError:
    for _ in range(attempts):
        with suppress(BrokenProcessPool):
            return call_alone(function, item)
    return WorkerDiedError("the process that read it ended: killed, out of memory, or a fault in a library")


class Alone:
    """A process of its own for some calls, which starts with the first of them and ends with this context manager, so
    that its threads and memory are free."""

    def __init__(self) -> None:
        self._pool = _pool(1, _end_at_once)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def __call__[R](self, function: Callable[..., R], *arguments: Any) -> R:
        """`function(*arguments)` there."""
        with _bare_main():
            result: Future[R] = self._pool.submit(function, *arguments)
        return result.result()


def call_alone[R](function: Callable[..., R], *arguments: Any) -> R:
    """`function(*arguments)` in a process of its own, which ends with the call."""
    with Alone() as alone:
        return alone(function, *arguments)


def _pool(workers: int, initializer: Callable[[], None]) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=initializer)


def _load() -> None:
    """Loads what all map steps need, so that it is there when the first piece of work comes."""
    _end_with_parent()
    word_hashes("")


def _end_at_once() -> None:
    """Lets nothing of the interpreter be taken apart at the process's end: threads of Daft and Ray that are still there
    died by a fault then, in nearly each process that used Ray."""
    _end_with_parent()
    atexit.register(os._exit, 0)


def _end_with_parent() -> None:
    """Exits when the parent does: a killed parent cannot stop its pool, and the workers would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _bare_main() -> Generator[None]:
    """Hides the main module while workers start: spawn would import it in each of them, and JAX with it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
