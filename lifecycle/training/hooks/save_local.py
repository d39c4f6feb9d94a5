"""Saves local checkpoints during training."""

import time
from collections.abc import Callable

from lifecycle.core.distributed import from_writer
from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun

CAUSE = "local checkpoint"


class SaveLocal(Hook):
    """A local checkpoint every `every` steps and, as `Save` does, `every_minutes` by process 0's clock, at steps whose
    metrics are fetched. A record of `local_save_stall_s` says how long training stood still for it: while this
    process's pieces were copied, and if the one before was still being written."""

    def __init__(self, checkpoints: LocalCheckpoints, clock: Callable[[], float] = time.monotonic) -> None:
        self._checkpoints, self._settings, self._clock = checkpoints, checkpoints.settings, clock
        self._begun_s = 0.0  # when the last save began

    def start(self, run: TrainingRun) -> None:
        """Starts the clock."""
        self._begun_s = self._clock()

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether this step is certainly saved: `Faults` checks its metrics first."""
        return run.step % self._settings.every == 0

    def after_step(self, run: TrainingRun) -> None:
        """Saves a local checkpoint if one is due."""
        if not self.needs_metrics(run) and (run.metrics is None or not self._is_time()):
            return
        self._begun_s = self._clock()
        before = run.clock.spent_s.get(CAUSE, 0.0)
        with off_the_clock(run, CAUSE):
            self._checkpoints.save(run.step, run.state.saved, run.data_state())
        run.write(local_save_stall_s=run.clock.spent_s[CAUSE] - before)

    def _is_time(self) -> bool:
        """Whether one is due by time; the same in all processes."""
        minutes = self._settings.every_minutes
        return minutes is not None and from_writer(self._clock() - self._begun_s >= 60 * minutes)
