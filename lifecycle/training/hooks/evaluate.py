"""Measures the weights on held-out data during training."""

from collections.abc import Callable

from lifecycle.model.params import Params
from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun


class Evaluate(Hook):
    """Logs `measure(params)` before the first step, every `every` steps and after the last; its time does not count as
    training time. `prepare(params)` compiles what `measure` runs: once in each process, before its first step, so that
    too little memory is found then and not hours later."""

    def __init__(
        self,
        every: int,
        measure: Callable[[Params], dict[str, float]],
        prepare: Callable[[Params], object] | None = None,
    ) -> None:
        self.every, self.measure, self.prepare = every, measure, prepare
        self._is_prepared = False

    def start(self, run: TrainingRun) -> None:
        """Compiles, and measures the initial weights; not again when a run is resumed or goes back to a checkpoint."""
        if self.prepare is not None and not self._is_prepared:
            with off_the_clock(run, "compile"):
                self.prepare(run.measured_weights)
            self._is_prepared = True
        if run.step == 0:  # a new run
            self._log(run)

    def after_step(self, run: TrainingRun) -> None:
        """Measures every `every` steps and after the last."""
        if run.is_last or run.step % self.every == 0:
            self._log(run)

    def _log(self, run: TrainingRun) -> None:
        with off_the_clock(run, "evaluation"):
            run.write_measured(**self.measure(run.measured_weights))
