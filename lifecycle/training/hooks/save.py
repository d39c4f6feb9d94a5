"""Saves checkpoints during training."""

import time
from collections.abc import Callable

from lifecycle.core.distributed import from_writer
from lifecycle.core.progress import Progress
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.retention import MEASURED
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun

RETRY_S = 60.0  # after a failed save, until it is tried again


class Save(Hook):
    """A checkpoint when one is due, when the job stops, and after the last step: the trained part of the state, and the
    data state. The time for which training stands still does not count as training time; the files are written during
    the next steps. A record of `save_stall_s` says how long training stood still for each.

    By steps all processes know when one is due. By time, and after a failure, process 0's clock decides, at steps whose
    metrics are fetched: there Python waits for the devices anyway, and the answer costs a job of several processes one
    broadcast more, and while saves fail two. A failed save is told, and tried again until saves have failed for
    `max_unsaved_minutes`, also while the run went back from faults. Then training stands still for a last save, and
    only if that fails, or the one after the last step, does the run end with `CheckpointError`.

    A step that is saved needs its metrics, so that `Faults` checks them first. This hook comes last: the steps that a
    checkpoint covers have been logged and measured.
    """

    def __init__(self, checkpoints: Checkpointer, clock: Callable[[], float] = time.monotonic) -> None:
        self._checkpoints, self._settings, self._clock = checkpoints, checkpoints.settings, clock
        self._begun_s = 0.0  # when the last save began
        self._is_pending = False
        self._stalled_s = 0.0  # in the records so far
        self._failing_since_s: float | None = None  # the first failure since a save that succeeded

    def start(self, run: TrainingRun) -> None:
        """Starts the clock and compiles the copy; raises `ValueError` if `checkpoint.best` is no metric of the first
        measurement."""
        with off_the_clock(run, "compile"):
            self._checkpoints.prepare(run.state.saved)
        self._begun_s, self._stalled_s, self._is_pending = self._clock(), 0.0, False
        self._check_best(run, is_measured=run.measured_at == run.step)

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether this step is certainly saved: `Faults` checks its metrics first."""
        return run.is_last or run.is_stopping or run.step % self._settings.every == 0

    def after_step(self, run: TrainingRun) -> None:
        """Saves a checkpoint if one is due; also of a step whose update was left out, which has no metrics."""
        if run.metrics is None and not self.needs_metrics(run):
            return
        is_end = run.is_last or run.is_stopping
        with off_the_clock(run, "checkpoint"):
            is_settled = self.settle(run.step, run.progress)
            is_overdue = self._is_overdue()
            if is_due := is_end or is_overdue or self._is_due(run.step, is_settled):
                self.settle(run.step, run.progress, is_waiting=True)
                self._save(run)
            if is_end or is_overdue:
                self._checkpoints.wait()
                self.settle(run.step, run.progress)
        if is_due:
            run.write(save_stall_s=run.clock.spent_s["checkpoint"] - self._stalled_s)
            self._stalled_s = run.clock.spent_s["checkpoint"]

    def settle(self, step: int, progress: Progress, is_waiting: bool = False) -> bool:
        """Whether no save is pending; a failed one is told. Whoever leaves the steps that are being trained, to go
        back, calls it too."""
        try:
            is_settled = self._checkpoints.settle(is_waiting=is_waiting)
        except CheckpointError as error:
            self._is_pending = False
            self._tell(step, progress, error)
            return True
        if is_settled and self._is_pending and self._failing_since_s is not None:
            self._failing_since_s = None
            progress.note(f"step {step}: checkpoints can be written again")
        self._is_pending = not is_settled
        return is_settled

    def _tell(self, step: int, progress: Progress, error: CheckpointError) -> None:
        if self._failing_since_s is None:
            self._failing_since_s = self._clock()
        left = self._settings.max_unsaved_minutes - self._failing_minutes()
        follows = f"goes on unsaved, for at most {left:.0f} min" if left > 0 else "stands still for a last save"
        progress.note(f"step {step}: training {follows}: {error}")

    def _failing_minutes(self) -> float:
        """For how long saves have failed."""
        return 0.0 if self._failing_since_s is None else (self._clock() - self._failing_since_s) / 60

    def _is_overdue(self) -> bool:
        """Whether saves have failed for too long; the same in all processes."""
        limit = self._settings.max_unsaved_minutes
        return self._failing_since_s is not None and from_writer(self._failing_minutes() >= limit)

    def _is_due(self, step: int, is_settled: bool) -> bool:
        """Whether to save after this step; the same in all processes."""
        is_failing = self._failing_since_s is not None
        if is_failing and not is_settled:
            return False
        if step % self._settings.every == 0 and not is_failing:
            return True
        waits = [60 * self._settings.every_minutes] if self._settings.every_minutes is not None else []
        waits += [RETRY_S] if is_failing else []
        return bool(waits) and from_writer(self._clock() - self._begun_s >= min(waits))

    def _save(self, run: TrainingRun) -> None:
        self._check_best(run, is_measured=run.step % self._settings.every == 0)
        measured = run.measured if run.measured_at == run.step else {}
        meta = {"step": run.step, "model": run.job.model.plain(), "train": run.job.train.plain(), MEASURED: measured}
        self._begun_s, self._is_pending = self._clock(), True
        self._checkpoints.save(run.step, run.state.saved, run.data_state(), meta)

    def _check_best(self, run: TrainingRun, is_measured: bool) -> None:
        best, measured = self._settings.best, run.measured if run.measured_at == run.step else {}
        if best is not None and best not in measured and is_measured:
            known = ", ".join(measured) or "none here: this stage holds nothing out"
            raise ValueError(f"checkpoint.best={best} is not measured in this stage; what is: {known}")
