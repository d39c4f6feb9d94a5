"""A watchdog: a process without a step for too long says where it hangs, and ends as a lost one.

A lost host, a stuck file system or a deadlock leaves all processes of a job in a collective, for ever and silently.
Each process has a watchdog of its own, so each writes its stacks. It counts its own polls, so a process that is
stopped and continued (a suspended laptop, a moved virtual machine) has not hung.
"""

import faulthandler
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.periodic import repeated
from lifecycle.core.stopping import LOST_STATUS, failure_status
from lifecycle.training.run import Clock

FACTOR = 10  # times the median time of the steps that the device may still have to do
MEASURED = 31  # the times that the median is of
# Times the limit while the clock stands still (compiling, measuring, saving), and until the first step is done, which
# waits for the processes that still compile.
OFF_CLOCK = 6
POLL_S = 1.0  # at most; a short limit is polled more often
GRACE_POLLS = 3  # between the stacks and the end: the other processes write theirs before a launcher ends them


class Watchdog:
    """Watches the steps of one process, and with more patience what is off the training clock. Writes
    `stacks-PROCESS.txt` into `out`, and to stderr."""

    def __init__(self, clock: Clock, out: Path, hang_s: float) -> None:
        self._clock, self._hang_s = clock, hang_s
        self._path = out / f"stacks-{jax.process_index()}.txt"
        self._poll_s = min(POLL_S, hang_s / 10)
        self._times: deque[float] = deque(maxlen=MEASURED)  # seconds per step
        self._done = self._awaited = 0  # steps that Python has launched, and those of them that the device may still do
        self._measured_at = clock.read()[0]
        self._silent_s, self._seen = 0.0, (0, clock.is_paused)

    @property
    def limit_s(self) -> float:
        """The longest time in which nothing happens; the device may have all steps since the last measurement to do."""
        step_s = statistics.median(self._times or [0.0])
        patience = OFF_CLOCK if self._clock.is_paused or not self._times else 1
        return patience * max(self._hang_s, FACTOR * step_s * (self._awaited + 1))

    def launched(self, metrics: Any) -> None:
        """A step that computes `metrics` has been launched. The first one is waited for: its time is not known."""
        self._done += 1
        self._awaited += 1
        if not self._times:
            jax.block_until_ready(metrics)
            self.measured()

    def measured(self) -> None:
        """The device has done all launched steps."""
        now = self._clock.read()[0]
        self._times.append((now - self._measured_at) / max(1, self._awaited))
        self._measured_at, self._awaited = now, 0

    @contextmanager
    def watching(self) -> Generator[None]:
        """Watches inside the block. Of one that ends as another process is lost, the stacks are written too: it may be
        the first that learns of a hang there. And of one that JAX's coordination service ends itself, by SIGABRT, which
        it does within two minutes of another's silence: to stderr."""
        if not faulthandler.is_enabled():
            faulthandler.enable()
        with repeated(self._look, self._poll_s, "watchdog"):
            try:
                yield
            except Exception as error:
                if failure_status(error) == LOST_STATUS:
                    self._write_stacks(f"another process is lost: {error}\n")
                raise

    def _look(self) -> None:
        now = (self._done, self._clock.is_paused)
        self._silent_s, self._seen = 0.0 if now != self._seen else self._silent_s + self._poll_s, now
        if self._silent_s > self.limit_s:
            self._give_up(self._silent_s)

    def _give_up(self, silent_s: float) -> None:
        # not `RESTART_STATUS`, which has no limit: a deadlock may come each time
        message = (
            f"no step for {silent_s:,.0f} s (limit {self.limit_s:,.0f} s), "
            f"{self._done} steps after the start of this process; its stacks are in {self._path.absolute()}; ending "
            f"with status {LOST_STATUS}, as a lost process, after which a launcher starts the job again some times\n"
        )
        self._write_stacks(message)
        time.sleep(GRACE_POLLS * self._poll_s)
        os._exit(LOST_STATUS)

    def _write_stacks(self, message: str) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            for out in (file, sys.stderr):
                out.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}: {message}")
                out.flush()
                faulthandler.dump_traceback(out, all_threads=True)
