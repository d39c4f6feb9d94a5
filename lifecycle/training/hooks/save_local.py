"""Saves local checkpoints during training."""

from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun

CAUSE = "local checkpoint"


class SaveLocal(Hook):
    """A local checkpoint every `every` steps. A record of `local_save_stall_s` says how long training stood still for
    it: while this process's pieces were copied, and if the one before was still being written."""

    def __init__(self, checkpoints: LocalCheckpoints) -> None:
        self._checkpoints = checkpoints

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether this step is saved: `Faults` checks its metrics first."""
        return run.step % self._checkpoints.every == 0

    def after_step(self, run: TrainingRun) -> None:
        """Saves a local checkpoint if one is due."""
        if not self.needs_metrics(run):
            return
        before = run.clock.spent_s.get(CAUSE, 0.0)
        with off_the_clock(run, CAUSE):
            self._checkpoints.save(run.step, run.state.saved, run.data_state())
        run.write(local_save_stall_s=run.clock.spent_s[CAUSE] - before)
