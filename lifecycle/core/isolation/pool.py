"""Isolated work from the caller's side: items in, as many results out, in order, whatever the items do.

Each of `workers` threads has a zygote (`zygote.py`), a process that forks the ones that work; all cores are used, and
how items fall to workers changes no result. Started with the first item, ended with this process.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.cores import available_cores
from lifecycle.core.isolation.confine import Limits
from lifecycle.core.isolation.frames import FrameError, read_frame, write_frame

START_S = 120.0
MOST_WORKERS = 64  # each holds its program's modules in memory
FEW, MANY = 8, 256  # items that a process takes at once: fewer are not worth another process
# The children's whole environment: no keys, no proxies, and one thread for libraries of numbers.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip
BOOT = """import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from lifecycle.core.isolation.zygote import main
main()
"""


class IsolationError(ValueError):
    """Isolated work cannot be done here at all; the message has the reason."""


@dataclass(frozen=True)
class Result:
    """What became of an item: a value, or the reason why there is none (a limit, an end without a result)."""

    value: Any = None
    failure: str = ""


class IsolatedPool:
    """Runs `program`, a function `MODULE:NAME` of (item, `Limits`), over items of JSON in processes with `limits`.

    A process does many items, and another one takes over after an item that ends it. `is_fresh`: a process per item, as
    for code that is not trusted; then the program's first argument is a function that reads the item. Any thread may
    call it.
    """

    def __init__(self, program: str, limits: Limits, *, is_fresh: bool, workers: int | None = None) -> None:
        self.program, self.limits, self.is_fresh = program, limits, is_fresh
        self.workers = workers or min(MOST_WORKERS, available_cores())
        self._idle: queue.SimpleQueue[_Zygote] = queue.SimpleQueue()
        self._all: list[_Zygote] = []
        self._lock = threading.Lock()

    def map(self, items: Sequence[Any]) -> list[Result]:
        """A result per item, in order; raises `IsolationError` if nothing can run here."""
        if not items:
            return []
        per_call = 1 if self.is_fresh else max(FEW, min(MANY, -(-len(items) // self.workers)))
        chunks = [items[begin : begin + per_call] for begin in range(0, len(items), per_call)]
        with ThreadPoolExecutor(min(self.workers, len(chunks))) as threads:
            return [result for results in threads.map(self._run, chunks) for result in results]

    def close(self) -> None:
        """Ends the processes; the next call of `map` starts others."""
        with self._lock:
            zygotes, self._all, self._idle = self._all, [], queue.SimpleQueue()
        for zygote in zygotes:
            zygote.end()

    def _run(self, items: Sequence[Any], is_second_try: bool = False) -> list[Result]:
        """Results of items; if their process is lost, such as to the system's lack of memory, each is tried again."""
        zygote = self._started() if is_second_try else self._taken()
        try:
            results = zygote.run(items)
        except (EOFError, TimeoutError, FrameError, BrokenPipeError) as error:
            zygote.end()
            if is_second_try:
                return [Result(failure=f"its process was lost: {error}")]
            return [result for item in items for result in self._run([item], is_second_try=True)]
        self._idle.put(zygote)
        return results

    def _taken(self) -> "_Zygote":
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        return self._started()

    def _started(self) -> "_Zygote":
        zygote = _Zygote(self.program, self.limits, self.is_fresh)
        with self._lock:
            self._all.append(zygote)
        return zygote


class _Zygote:
    """One such process."""

    def __init__(self, program: str, limits: Limits, is_fresh: bool) -> None:
        self._limits, self._is_fresh = limits, is_fresh
        path = [
            str(Path(folder).resolve()) for folder in sys.path
        ]  # a relative one would be the code's own scratch folder
        arguments = [json.dumps(path), program, json.dumps(asdict(limits)), "fresh" if is_fresh else "many"]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-c", BOOT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=ENVIRONMENT, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out_of = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._start()

    def _start(self) -> None:
        try:
            greeting = read_frame(self._out_of, 1 << 20, time.monotonic() + START_S)
        except (EOFError, TimeoutError) as error:
            self._process.kill()
            said = self._process.communicate()[1].decode(errors="replace")
            raise IsolationError(f"no isolated process could be started ({error}): {said[-2000:]}") from None
        if "unable" in greeting:
            self.end()
            raise IsolationError(greeting["unable"])

    def run(self, items: Sequence[Any]) -> list[Result]:
        """A result per item; raises what `read_frame` and `write_frame` do if the process is lost."""
        write_frame(self._into, [] if self._is_fresh else list(items))
        if self._is_fresh:
            write_frame(self._into, items[0])
        most_s = (self._limits.wall_s + 10.0) * len(items)
        answers = read_frame(self._out_of, (self._limits.output_bytes + 100) * len(items), time.monotonic() + most_s)
        if unable := next((answer["unable"] for answer in answers if "unable" in answer), None):
            self.end()
            raise IsolationError(unable)
        return [Result(answer.get("value"), answer.get("failed", "")) for answer in answers]

    def end(self) -> None:
        """Closes its input, at which it ends with all that it has started."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
