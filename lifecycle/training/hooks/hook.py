"""What the loop calls between steps."""

from lifecycle.training.run import TrainingRun


class Hook:
    """Work between steps. All processes call the same hooks in the same order; a method that is not needed is left as
    it is here. An exception ends the run, with a note that names the hook."""

    def start(self, run: TrainingRun) -> None:
        """Before the first step of this process: of the run, or after the checkpoint that it goes on from."""

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether `run.metrics` must be there after this step; fetching them makes Python wait for the devices."""
        return False

    def after_step(self, run: TrainingRun) -> None:
        """After each step. The devices may still be computing it."""
