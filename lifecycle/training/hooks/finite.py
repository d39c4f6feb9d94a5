"""Stops a run whose loss or gradient is not finite."""

import math

from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.run import TrainingRun


class DivergedError(ValueError):
    """The loss, the gradient norm or another metric is not finite."""


class Finite(Hook):
    """Raises `DivergedError` if fetched metrics are not finite, before they are logged and before a save."""

    def after_step(self, run: TrainingRun) -> None:
        """Raises `DivergedError` unless all metrics are finite."""
        if run.metrics is None or all(math.isfinite(value) for value in run.metrics.values()):
            return
        raise DivergedError(
            f"step {run.step}: {run.metrics}: not finite. The checkpoints before it are kept in "
            f"{(run.job.out / CHECKPOINTS).absolute()}; lower optimizer.learning_rate or optimizer.clip_norm"
        )
