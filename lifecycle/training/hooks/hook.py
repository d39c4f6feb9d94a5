"""The interface of hooks, which the loop calls between steps."""

from collections.abc import Generator
from contextlib import contextmanager

import jax

from lifecycle.training.run import TrainingRun


@contextmanager
def off_the_clock(run: TrainingRun, cause: str) -> Generator[None]:
    """Stops the run's clock inside the block, whose work is not training but `cause`. Waits for the steps that still
    run: their time counts, and the block would hide it."""
    jax.block_until_ready(run.state)
    with run.clock.paused(cause):
        yield


class Hook:
    """Work between steps. All processes call the same hooks in the same order; override the methods you need. An
    exception ends the run, with a note that names the hook. Work that takes time goes into `off_the_clock`."""

    def start(self, run: TrainingRun) -> None:
        """Called before this process's first step, of a new or a resumed run."""

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether `after_step` needs `run.metrics`; fetching them makes Python wait for the devices."""
        return False

    def after_step(self, run: TrainingRun) -> None:
        """Called after each step; the devices may still be computing it."""
