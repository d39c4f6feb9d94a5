"""Traces a few steps for XProf: what the devices and the host did, operation by operation."""

import jax

from lifecycle.core.distributed import is_writer
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun

PROFILE = "profile"  # a folder in a job's `out`, with XProf's own folders in it


class Profile(Hook):
    """Traces the steps `first` to `last`, counted from 1, in the writing process; a run that stops or ends before ends
    the trace. A step that runs again is traced again. Waits for the devices before and after, so that a trace has whole
    steps."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._is_tracing = False

    def start(self, run: TrainingRun) -> None:
        """Begins the trace if the next step is one of them."""
        self._begin_or_end(run)

    def after_step(self, run: TrainingRun) -> None:
        """Begins the trace before the first of the steps and ends it after the last."""
        self._begin_or_end(run)

    def _begin_or_end(self, run: TrainingRun) -> None:
        is_due = self._first - 1 <= run.step < self._last and not (run.is_last or run.is_stopping)
        if is_due == self._is_tracing or not is_writer():
            return
        with off_the_clock(run, "profile"):
            if is_due:
                jax.profiler.start_trace(run.job.out / PROFILE)
            else:
                jax.profiler.stop_trace()
                run.progress.note(f"traced up to step {run.step}: lifecycle profile {run.job.out}")
        self._is_tracing = is_due
