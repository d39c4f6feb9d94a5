"""The process that isolated work is forked from: small, with one thread, and with the work's modules imported.

A fork of it starts in milliseconds, where a new interpreter takes a tenth of a second. It takes batches of items over
its standard input, and answers each with as many results. A child works through a batch item by item; one that exceeds
its time, its memory or its output is killed with all that it has started, the item has failed, and a new child goes on
with the next. It ends with its parent, however that ends.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lifecycle.core.isolation.confine import PARENT_DEATH_SIGNAL, Limits, control_process, limit_resources
from lifecycle.core.isolation.frames import FrameError, read_frame, write_frame

LARGEST_BATCH_BYTES = 1 << 30
LOOK_EVERY_S = 0.1  # at the scratch folder's size, and for a parent that has gone
CHILD_SUBREAPER = 36  # prctl's
SIGNALS = {signal.SIGPROF: "CPU time", signal.SIGXCPU: "CPU time", signal.SIGXFSZ: "file size"}

type Program = Callable[[Any, Limits], Any]


def main() -> None:
    """Serves until standard input ends; arguments: `MODULE:FUNCTION`, the limits, and whether each item has a child."""
    name, limits, is_fresh = sys.argv[1], Limits(**json.loads(sys.argv[2])), sys.argv[3] == "fresh"
    requests, replies = os.dup(0), os.dup(1)
    _silence(0, 1)
    control_process(CHILD_SUBREAPER, 1)  # whoever is left behind becomes this process's child
    random.seed(0)  # forks draw the same numbers every time
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
            write_frame(replies, Batch(program, limits, requests, is_fresh).run(items))


def _silence(*standard: int) -> None:
    """Standard input, output and error lead nowhere: what work prints is no message."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in standard:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Batch:
    """One request's items, and the children that work through them."""

    def __init__(self, program: Program, limits: Limits, requests: int, is_fresh: bool) -> None:
        self._program, self._limits, self._requests, self._is_fresh = program, limits, requests, is_fresh

    def run(self, items: list[Any]) -> list[dict[str, Any]]:
        """A result per item: `{"value": ...}`, or `{"failed": why}`; `{"unable": why}` if nothing may run here."""
        results: list[dict[str, Any]] = []
        while len(results) < len(items):
            count = 1 if self._is_fresh else len(items)
            results += self._one_child(items[len(results) : len(results) + count])
        return results

    def _one_child(self, items: list[Any]) -> list[dict[str, Any]]:
        """Results of the first items, at least of one; the last may be a failure."""
        with _scratch() as folder:
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                _work(self._program, items, self._limits, writer, folder)
            os.close(writer)
            results: list[dict[str, Any]] = []
            try:
                while len(results) < len(items):
                    results.append(self._next(reader, child, folder))
                    if "value" not in results[-1]:
                        break
            finally:
                os.close(reader)
                _end_all(child)
        return results

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
        try:
            return read_frame(reader, self._limits.output_bytes, deadline)
        except TimeoutError:
            return {"failed": "wall time"}
        except FrameError:
            return {"failed": "output size"}
        except EOFError:
            return {"failed": _ended_by(os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT))}


def _work(program: Program, items: list[Any], limits: Limits, writer: int, folder: Path) -> None:
    """What the child does; never returns."""
    try:
        control_process(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        os.closerange(3, writer)
        os.closerange(writer + 1, 4096)
        os.chdir(folder)
        os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(folder)
        limit_resources(Limits(**{**vars(limits), "cpu_s": limits.cpu_s * (len(items) + 1)}))
        for item in items:
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # not handled: it ends even a long division
            write_frame(writer, _answered(program, item, limits))
            random.seed(0)
    finally:
        os._exit(0)


def _answered(program: Program, item: Any, limits: Limits) -> dict[str, Any]:
    try:
        return {"value": program(item, limits)}
    except OSError as error:
        return {"unable": str(error)}
    except MemoryError:
        return {"failed": "memory"}
    except Exception as error:  # the border of a process: the reason goes to whoever counts failures
        return {"failed": f"{type(error).__name__}: {error}"[:2000]}


@contextmanager
def _scratch() -> Iterator[Path]:
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
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """The processes whose parent this one is; a process of one thread knows them all."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(word) for word in listed.read_text(encoding="ascii").split()] if listed.exists() else []


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
