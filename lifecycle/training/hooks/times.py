"""Keeps the stage's time sheet, and says at the first step what the time until then went into."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.distributed import is_writer
from lifecycle.core.stopping import Stopped
from lifecycle.core.timesheet import FINISHED, STOPPED, TIMES, WENT_BACK, Timesheet
from lifecycle.training.hooks.faults import GoBack
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import TrainJob
from lifecycle.training.run import Clock, TrainingRun

STATUS = Path("/proc/self/status")


class RecordTimes(Hook):
    """A record whenever metrics are fetched: seconds by cause since this session began, the time of each step since the
    last record, and memory. It comes after `Save`, so that the record of a checkpoint's step has the stall."""

    def __init__(self, job: TrainJob, clock: Clock, step: int) -> None:
        self._clock, self._step = clock, step
        self._sheet: Timesheet | None = None
        self._is_first, self._cpu_s = True, cpu_seconds()
        if is_writer():
            seconds = clock.seconds()
            began = time.time() - sum(seconds.values())
            self._sheet = Timesheet(job.out / TIMES, began, step, seconds, **job.facts)

    @contextmanager
    def session(self) -> Generator["RecordTimes"]:
        """Notes how the session ended, and closes the sheet."""
        ended = FINISHED
        try:
            yield self
        except BaseException as error:
            ended = _ended_by(error)
            raise
        finally:
            if self._sheet is not None:
                self._sheet.write(self._step, self._clock.seconds(), ended=ended)
                self._sheet.close()

    def start(self, run: TrainingRun) -> None:
        """Records what the time until the first step went into, and which step the session resumed from."""
        self._step = run.step
        if self._sheet is not None:
            self._sheet.write(run.step, run.clock.seconds())

    def after_step(self, run: TrainingRun) -> None:
        """Writes a record if this step's metrics are here: its output is computed, so nothing waits for it."""
        self._step = run.step
        if run.metrics is None:
            return
        steps, late = run.times.take()
        for cause, seconds in late.items():
            run.clock.waited(cause, seconds)
        if self._sheet is None:
            return
        if self._is_first:
            self._is_first = False
            run.progress.note(until_first_step(run.clock.spent_s, steps[0]))
        rounded = [round(s, 6) for s in steps]
        self._sheet.write(run.step, run.clock.seconds(), step_s=rounded, cpu_s=cpu_seconds() - self._cpu_s, **memory())


def _ended_by(error: BaseException) -> str:
    if isinstance(error, GoBack):
        return WENT_BACK
    return STOPPED if isinstance(error, (Stopped, KeyboardInterrupt)) else type(error).__name__


def until_first_step(spent_s: Mapping[str, float], first_step_s: float) -> str:
    """What the time from the process's start to its first new step went into, in one line."""
    causes = [cause for cause in ("start", "imports", "data", "restore", "compile") if cause in spent_s]
    parts = {cause: spent_s[cause] for cause in causes} | {"first step": first_step_s}
    shown = ", ".join(f"{cause} {seconds:.1f}" for cause, seconds in parts.items())
    return f"first step after {sum(parts.values()):.1f} s: {shown}"


def memory() -> dict[str, int]:
    """This process's memory: that of its fullest device, where the backend knows it; else what it occupies itself."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if stats:
        fullest = max(stats, key=lambda s: s["peak_bytes_in_use"])
        limit = {"device_limit_bytes": fullest["bytes_limit"]} if "bytes_limit" in fullest else {}
        return {"device_peak_bytes": fullest["peak_bytes_in_use"], **limit}
    if not STATUS.is_file():
        return {}
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
    return {"process_bytes": 1024 * int(fields["VmRSS"].split()[0])}
