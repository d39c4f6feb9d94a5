"""The process that isolated work is forked from: small, with one thread, and with the work's modules imported.

A fork of it starts in milliseconds, where a new interpreter takes a tenth of a second. It takes batches of items over
its standard input, and answers each with as many results. A child works through a batch item by item; one that exceeds
its time, its memory or its output is killed with all that it has started, the item has failed, and a new child goes on
with the next. It ends with its parent, however that ends.

With `fresh` an item has a child of its own, which reads the item itself, when its program asks for it; this process
never does. So what a program forks before it asks knows nothing of this item, nor of any other: code under test, say,
nothing of its tests.
"""

import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifecycle.core.isolation.confine import PARENT_DEATH_SIGNAL, ConfineError, Limits, control_process, limit_resources
from lifecycle.core.isolation.frames import FrameError, read_frame, write_frame

LARGEST_BATCH_BYTES = 1 << 30
GOT = "got"  # a child's first message: it has read its item
LOOK_EVERY_S = 0.1  # at files and threads, and for a parent that has gone
MOST_THREADS = 256  # of an item: a machine, or a container, has room for some thousands
CHILD_SUBREAPER = 36  # prctl's
SIGNALS = {signal.SIGPROF: "CPU time", signal.SIGXCPU: "CPU time", signal.SIGXFSZ: "file size"}

type Program = Callable[[Any, Limits], Any]  # of an item; with `fresh` of a function that reads it


def main() -> None:
    """Serves until standard input ends; arguments: `MODULE:FUNCTION`, the limits, and whether each item has a child."""
    name, limits, is_fresh = sys.argv[1], Limits(**json.loads(sys.argv[2])), sys.argv[3] == "fresh"
    requests, replies = os.dup(0), os.dup(1)
    _silence(0, 1)
    with suppress(OSError):  # a system without it
        Path("/proc/self/oom_score_adj").write_text(
            "1000", encoding="ascii"
        )  # out of memory, these end and not the run
    control_process(CHILD_SUBREAPER, 1)  # whoever is left behind becomes this process's child
    module, _, function = name.partition(":")
    try:
        program: Program = getattr(importlib.import_module(module), function)
    except ImportError as error:
        write_frame(replies, {"unable": str(error)})
        return
    gc.freeze()  # a child's collector would touch, and so copy, every page
    write_frame(replies, {"ready": name})
    _silence(2)
    with suppress(EOFError, BrokenPipeError):
        while True:
            items = read_frame(requests, LARGEST_BATCH_BYTES)
            work = Work(program, limits, requests)
            write_frame(replies, [work.fresh()] if is_fresh else work.batch(items))


def _silence(*standard: int) -> None:
    """Standard input, output and error lead nowhere: what work prints is no message."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in standard:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Work:
    """One request, and the children that work on it. A result is `{"value": ...}`, `{"failed": why}`, or
    `{"unable": why}` if nothing may run here."""

    def __init__(self, program: Program, limits: Limits, requests: int) -> None:
        self._program, self._limits, self._requests = program, limits, requests

    def batch(self, items: list[Any]) -> list[dict[str, Any]]:
        """A result per item, in order."""
        results: list[dict[str, Any]] = []
        while len(results) < len(items):
            results += self._some(items[len(results) :])
        return results

    def fresh(self) -> dict[str, Any]:
        """The result of the item that follows in `requests`, which a child reads."""
        program, limits, requests = self._program, self._limits, self._requests
        with self._child(lambda writer: _work_fresh(program, limits, requests, writer)) as next_:
            if next_() != {"value": GOT}:
                os._exit(1)  # where the next request begins is not known
            return next_()

    def _some(self, items: list[Any]) -> list[dict[str, Any]]:
        """Results of the first items, at least of one; the last may be a failure."""
        results: list[dict[str, Any]] = []
        with self._child(lambda writer: _work(self._program, items, self._limits, writer)) as next_:
            while len(results) < len(items) and (not results or "value" in results[-1]):
                results.append(next_())
        return results

    @contextmanager
    def _child(self, work: Callable[[int], None]) -> Generator[Callable[[], dict[str, Any]]]:
        """A child that does `work` with the descriptor that it writes results to; yields what reads the next one."""
        with _scratch() as folder:
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                _do(work, self._requests, writer, folder)
            os.close(writer)
            try:
                yield lambda: self._next(reader, child, folder)
            finally:
                os.close(reader)
                _end_all(child)

    def _next(self, reader: int, child: int, folder: Path) -> dict[str, Any]:
        """The next message of the child, or why there is none."""
        deadline = time.monotonic() + self._limits.wall_s
        while not select.select([reader], [], [], LOOK_EVERY_S)[0]:
            if _is_closed(self._requests):
                _end_all(child)
                os._exit(1)
            if time.monotonic() > deadline:
                return {"failed": "wall time"}
            if _used_bytes(folder) > 4 * self._limits.file_bytes:
                return {"failed": "size of files"}
            if sum(map(_num_threads, _family(child))) > MOST_THREADS:
                return {"failed": "threads"}
        try:
            return read_frame(reader, self._limits.output_bytes, deadline)
        except TimeoutError:
            return {"failed": "wall time"}
        except FrameError:
            return {"failed": "output size"}
        except EOFError:
            return {"failed": _ended_by(os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT))}


def _do(work: Callable[[int], None], requests: int, writer: int, folder: Path) -> None:
    """What a child does; never returns."""
    try:
        control_process(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        keep_only(requests, writer)
        os.chdir(folder)
        random.seed(0)  # which Python draws anew in every fork: work must have the same result each time
        os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(folder)
        work(writer)
    finally:
        os._exit(0)


def _work(program: Program, items: list[Any], limits: Limits, writer: int) -> None:
    limit_resources(replace(limits, cpu_s=limits.cpu_s * (len(items) + 1)))
    for item in items:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # not handled: it ends even a long division
        write_frame(writer, _answered(program, item, limits))
        random.seed(0)


def _work_fresh(program: Program, limits: Limits, requests: int, writer: int) -> None:
    def read() -> Any:
        item = read_frame(requests, LARGEST_BATCH_BYTES)
        os.close(requests)
        write_frame(writer, {"value": GOT})
        return item

    limit_resources(replace(limits, cpu_s=limits.cpu_s * 2))
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    write_frame(writer, _answered(program, read, limits))


def keep_only(*descriptors: int) -> None:
    """Closes every other descriptor but the standard ones."""
    begin = 3
    for descriptor in (*sorted(descriptors), 1 << 16):
        os.closerange(begin, descriptor)
        begin = descriptor + 1


def _answered(program: Program, item: Any, limits: Limits) -> dict[str, Any]:
    try:
        return {"value": program(item, limits)}
    except ConfineError as error:
        return {"unable": str(error)}
    except MemoryError:
        return {"failed": "memory"}
    except Exception as error:  # the border of a process: the reason goes to whoever counts failures
        return {"failed": f"{type(error).__name__}: {error}"[:2000]}


@contextmanager
def _scratch() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="isolated-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _used_bytes(folder: Path) -> int:
    """Bytes of the files in a folder without folders, and 4 KiB for each file."""
    used = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                used += entry.stat(follow_symlinks=False).st_size + 4096
    return used


def _end_all(child: int) -> None:
    """Kills the child, and whatever it has started: orphans become children of this process. Waits for all."""
    os.kill(child, signal.SIGKILL)  # nobody has waited for it: the number is still its own
    with suppress(ChildProcessError):
        while True:
            for pid in _children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _family(pid: int) -> Iterator[int]:
    """A process, those that it has started, and so on."""
    yield pid
    for child in _children(pid):
        yield from _family(child)


def _children(pid: int) -> list[int]:
    """The processes that a process's first thread has started; no other starts any."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended, or the system has no such list
        return []


def _num_threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _ended_by(status: os.waitid_result | None) -> str:
    assert status is not None
    if status.si_code == os.CLD_EXITED:
        return "it ended before it had a result"
    return SIGNALS.get(signal.Signals(status.si_status), f"killed by {signal.Signals(status.si_status).name}")


def _is_closed(requests: int) -> bool:
    poll = select.poll()
    poll.register(requests, select.POLLHUP)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


if __name__ == "__main__":
    main()
