"""A running training job: its state, clock and log, as the loop changes them and hooks see them."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import RunLog
from lifecycle.core.timesheet import CAUSES, STEPS
from lifecycle.model.params import Params
from lifecycle.training.faults import to_plain
from lifecycle.training.job import TrainJob
from lifecycle.training.passing import PassingBatches
from lifecycle.training.served import served_by
from lifecycle.training.state import TrainState
from lifecycle.training.step_times import StepTimes

FAULTS = "faults"  # in a checkpoint's data state
NUM_TOKENS = "num_tokens"  # there too, and a metric: how many tokens the run has seen, padding left out


class Clock:
    """Wall and CPU seconds of training, excluding the time while it is paused; `spent_s` has that time by cause.

    `before`: seconds by cause that this session has spent before the clock was made.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._paused_wall_s = self._paused_cpu_s = 0.0
        self.spent_s: dict[str, float] = dict(before or {})
        self.is_paused = False
        self._began = time.perf_counter() - sum(self.spent_s.values())

    def seconds(self) -> dict[str, float]:
        """The wall seconds of the session by cause; what no other cause has is of the steps."""
        steps = time.perf_counter() - self._began - sum(self.spent_s.values())
        return {STEPS: steps, **self.spent_s}

    def waited(self, cause: str, seconds: float) -> None:
        """Adds time that `cause` took from the steps, while the clock went on."""
        self.spent_s[cause] = self.spent_s.get(cause, 0.0) + seconds

    def read(self) -> tuple[float, float]:
        """(wall, CPU) seconds since an arbitrary moment."""
        return time.perf_counter() - self._paused_wall_s, cpu_seconds() - self._paused_cpu_s

    @contextmanager
    def paused(self, cause: str) -> Generator[None]:
        """Stops the clock inside the block, whose wall time is added to what `cause` has spent."""
        assert cause in CAUSES, f"{cause}: not in core/timesheet.py:CAUSES, so nobody would show it"
        wall_s, cpu_s = self.read()
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
            before, self._paused_wall_s = self._paused_wall_s, time.perf_counter() - wall_s
            self._paused_cpu_s = cpu_seconds() - cpu_s
            self.spent_s[cause] = self.spent_s.get(cause, 0.0) + self._paused_wall_s - before


@dataclass
class TrainingRun:
    """The run as hooks may read and use it. `metrics` are the last step's, on the host, if a hook needed them; then
    `fetched` has the loss and the gradient norm of each step since they were fetched before. `batch` is the next
    step's, on the devices."""

    job: TrainJob
    progress: Progress
    log: RunLog | None  # of the process that writes
    state: TrainState
    step: int  # finished steps
    num_tokens: int = 0  # that they saw, up to the newest one of which metrics were fetched
    is_stopping: bool = False  # whether the job stops after this step, which is then saved
    metrics: dict[str, float] | None = None
    fetched: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    batch: dict[str, jax.Array] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    measured: dict[str, float] = field(default_factory=dict)  # on held-out data, after `measured_at` steps
    measured_at: int | None = None
    logged: dict[str, Any] = field(default_factory=dict)  # all that was written to the log of its `step`
    times: StepTimes = field(default_factory=StepTimes)

    @property
    def is_last(self) -> bool:
        """Whether no step is left."""
        return self.step == self.job.train.steps

    @property
    def last_batch(self) -> int:
        """The number of the batch that the last step trained on, as the job's source counts."""
        return self.batch_of(self.step)

    def batch_of(self, step: int) -> int:
        """The same of the step that was the `step`-th, from 1 on."""
        batches = self.job.batches
        return batches.number(step - 1) if isinstance(batches, PassingBatches) else step - 1

    @property
    def measured_weights(self) -> Params:
        """The weights as they are measured: those that the run is for, as they will be served."""
        return served_by(self.job.model, self.job.train, self.job.mesh)(self.state.weights)

    def data_state(self) -> dict[str, Any]:
        """What a checkpoint stores beside its arrays: where the batches are, how many tokens were seen (of a step whose
        metrics were fetched, as those of a saved one are) and, if the step looks for faults, what it knows of the steps
        before."""
        faults = {FAULTS: to_plain(self.state.faults)} if self.job.train.faults.is_guarded else {}
        return self.job.batches.state(self.step) | {NUM_TOKENS: self.num_tokens} | faults

    def write(self, **record: Any) -> None:
        """Adds a record of this step to the run log."""
        earlier = self.logged if self.logged.get("step") == self.step else {"step": self.step}
        self.logged = earlier | record
        if self.log is not None:
            self.log.write(step=self.step, **record)

    def write_measured(self, **values: float) -> None:
        """Adds what was measured on held-out data at this step."""
        earlier = self.measured if self.measured_at == self.step else {}
        self.measured, self.measured_at = earlier | values, self.step
        self.write(**values)
