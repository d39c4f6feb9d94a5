"""The interface of hooks, which the loop calls between steps."""

from lifecycle.training.run import TrainingRun


class Hook:
    """Work between steps. All processes call the same hooks in the same order; override the methods you need. An
    exception ends the run, with a note that names the hook."""

    def start(self, run: TrainingRun) -> None:
        """Called before this process's first step, of a new or a resumed run."""

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether `after_step` needs `run.metrics`; fetching them makes Python wait for the devices."""
        return False

    def after_step(self, run: TrainingRun) -> None:
        """Called after each step; the devices may still be computing it."""
