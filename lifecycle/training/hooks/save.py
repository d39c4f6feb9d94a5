"""Saves checkpoints during training."""

from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun


class Save(Hook):
    """A checkpoint when one is due, when the job stops, and after the last step: the trained part of the state, and the
    data state. The time until its arrays are copied does not count as training time; the files are written during the
    next steps.

    It needs the metrics, so that `Finite` checks them before a save. It comes last: the steps that a checkpoint covers
    have been logged and measured.
    """

    def __init__(self, checkpoints: Checkpointer) -> None:
        self._checkpoints = checkpoints

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether this step is saved: `Finite` checks its metrics first."""
        return run.is_last or run.is_stopping or self._checkpoints.should_save(run.step)

    def after_step(self, run: TrainingRun) -> None:
        """Saves a checkpoint if one is due."""
        if not self.needs_metrics(run):
            return
        meta = {"step": run.step, "model": run.job.model.plain(), "train": run.job.train.plain()}
        with off_the_clock(run, "checkpoint"):
            self._checkpoints.save(run.step, run.state.saved, run.job.batches.state(run.step), meta)
