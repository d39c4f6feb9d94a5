"""Worker processes of this machine for the pipeline's map steps, and a separate one for Daft.

Workers are not forked from this process (that would copy locks held by JAX's and Daft's threads) but from a server that
imports only the data room, and end with their parent, however it ends. A worker that dies takes no other item of the
work with it.
"""

import atexit
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any, Self

import pyarrow as pa

from lifecycle.core.cpu_time import add_cpu_seconds
from lifecycle.core.step_costs import StepCosts, add_costs, step_costs

_told = [0.0]  # CPU seconds of this process that are counted


class WorkerDiedError(ValueError):
    """The process that did an item of the work ended: killed, out of memory, or by a fault in a library. A run ends
    with `of`, if it needs the item."""

    def of(self, item: str) -> "WorkerDiedError":
        """The same, with what was lost and what to do, for the user."""
        fix = "with fewer data.workers each has more memory; the same command continues from here"
        return WorkerDiedError(f"{item}: {self}; {fix}")


class Workers:
    """So many processes, which stay until the end of this context manager. If it is one, the work is done in this
    process, unless `apart`."""

    def __init__(self, count: int, apart: bool = False) -> None:
        self.count, self.is_here = count, count == 1 and not apart
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if not self.is_here:
            _forking()
            forkserver.ensure_running()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def results[T, R](
        self, function: Callable[[T], R], work: Sequence[T], attempts: int, apart: bool = False
    ) -> Iterator[tuple[int, R | WorkerDiedError]]:
        """Yields the number of each item and `function(item)` as they are ready. Items whose processes die are done
        again, each alone, up to `attempts` times in all. A single item is done in this process, unless `apart`."""
        if self.is_here or (len(work) <= 1 and not apart):
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
        running: dict[Future[tuple[R, float, StepCosts]], int] = {}
        lost: list[int] = []
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, mp_context=_forking(), initializer=_begin)
        pool = self._pool
        try:
            while (waiting or running) and not lost:
                try:
                    with _bare_main():
                        while waiting and len(running) < 2 * self.count:
                            running[pool.submit(counted, function, work[waiting[0]])] = waiting[0]
                            waiting.popleft()
                except BrokenProcessPool:  # what runs says so below; if nothing does, a process has died without work
                    if not running:
                        lost.append(waiting.popleft())
                for done in wait_for(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(done)
                    if isinstance(done.exception(), BrokenProcessPool):
                        lost.append(number)
                    else:
                        yield number, told(*done.result())
            return sorted([*lost, *running.values()])
        finally:
            if lost or running:  # the pool is broken, or has work that nobody asks for any more
                self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def counted[R](function: Callable[..., R], *arguments: Any) -> tuple[R, float, StepCosts]:
    """`function(*arguments)`, the CPU time of this process since the last such call, and what steps have spent in it:
    for `told` in the process that asks."""
    with step_costs() as costs:
        result = function(*arguments)
    spent = time.process_time()
    seconds, _told[0] = spent - _told[0], spent
    return result, seconds, costs


def told[R](result: R, seconds: float, costs: StepCosts) -> R:
    """Counts here what another process, which is no child of this one, has spent on a result."""
    add_cpu_seconds(seconds)
    add_costs(costs)
    return result


def _alone[T, R](function: Callable[[T], R], item: T, attempts: int) -> R | WorkerDiedError:
    for _ in range(attempts):
        with suppress(BrokenProcessPool):
            return call_alone(function, item)
    return WorkerDiedError("the process that read it ended: killed, out of memory, or a fault in a library")


class Alone:
    """A process of its own for some calls, which ends with this context manager or before, so that its threads and
    memory are free."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_end_at_once)
        self._seconds = 0.0  # that its calls have told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends the process; there are no further calls."""
        self._pool.shutdown()
        add_cpu_seconds(-self._seconds)  # a child that has ended is counted
        self._seconds = 0.0

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Lets the process start meanwhile, with this call; the next one finds out what it could not do."""
        with _bare_main():
            self._pool.submit(function, *arguments)

    def __call__[R](self, function: Callable[..., R], *arguments: Any) -> R:
        """`function(*arguments)` there."""
        with _bare_main():
            done = self._pool.submit(counted, function, *arguments)
        result, seconds, costs = done.result()
        self._seconds += seconds
        return told(result, seconds, costs)


def call_alone[R](function: Callable[..., R], *arguments: Any) -> R:
    """`function(*arguments)` in a process of its own, which ends with the call."""
    with Alone() as alone:
        return alone(function, *arguments)


def _forking() -> BaseContext:
    """What forks workers from a server. It starts in 0.6 s, once, while this process does something else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.worker_imports"])
    return context


def _begin() -> None:
    """Arrow's threads are no use beside as many processes as there are cores."""
    _end_with_parent()
    pa.set_cpu_count(1)


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
    """Hides the main module while workers start: each of them would import it, and JAX with it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
