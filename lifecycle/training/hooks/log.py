"""Writes metrics to the run log, with rates since the previous record."""

import numpy as np
import optax

from lifecycle.training.hooks.hook import Hook, off_the_clock
from lifecycle.training.run import TrainingRun
from lifecycle.training.step import COMPUTED


class Log(Hook):
    """A record every `every` steps, and whenever another hook needs the metrics. Adds `learning_rate`, `tokens_per_s`
    (of the rows' positions, without the share of micro-batches that the newest step passed over), `step_time` (mean
    seconds) and `cpu_s` (CPU seconds of this process) to the step's metrics. These are of the steps and their batches:
    compilation, measurements, the copy of a checkpoint's arrays and the log itself are off the clock. The checkpoint is
    written during the next steps, and takes CPU time from them."""

    def __init__(self, every: int, schedule: optax.Schedule) -> None:
        self._every, self._schedule = every, schedule
        self._step, self._wall_s, self._cpu_s = 0, 0.0, 0.0  # at the previous record

    def start(self, run: TrainingRun) -> None:
        """Starts the clock."""
        self._step, (self._wall_s, self._cpu_s) = run.step, run.clock.read()

    def needs_metrics(self, run: TrainingRun) -> bool:
        """Whether this step is logged."""
        return run.step % self._every == 0

    def after_step(self, run: TrainingRun) -> None:
        """Writes the metrics, the learning rate, and CPU seconds and tokens per second since the last record."""
        if run.metrics is None:
            return
        wall_s, cpu_s = run.clock.read()
        positions = (run.step - self._step) * run.job.train.global_batch_size * run.job.train.seq_len
        positions *= float(run.metrics.get(COMPUTED, 1.0))
        spent_s = wall_s - self._wall_s
        rates = {"tokens_per_s": positions / spent_s, "step_time": spent_s / (run.step - self._step)}
        rates["cpu_s"] = cpu_s - self._cpu_s
        self._step, self._wall_s, self._cpu_s = run.step, wall_s, cpu_s
        with off_the_clock(run, "log"):  # computing the learning rate compiles for 150 ms, the first time
            rate = float(np.asarray(self._schedule(run.step - 1)))
            record = {**run.metrics, "learning_rate": rate, **rates}
            run.write(**record)
            run.progress.update(run.step, total=run.job.train.steps, step=run.step, **record)
