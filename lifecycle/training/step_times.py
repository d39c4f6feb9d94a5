"""How long each step takes and how long the devices wait for batches, without making Python wait for the devices.

Steps are dispatched ahead, so the times at which Python gets there say nothing about them. A thread waits for each
step's loss and notes when it was there. A step begins when it was dispatched or when the one before it ended, whichever
is later: what runs between steps is in none. A batch that comes while a step runs costs nothing; only the time for
which the devices had nothing to do counts as waiting for the loader.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import jax


class _Step(NamedTuple):
    """A step: when it was dispatched, and when and by what its next batch was fetched."""

    dispatched: float
    began: float
    fetched: float
    spent: Mapping[str, float]


class StepTimes:
    """Follows the steps of one run. `wait` blocks until a step's output is computed."""

    def __init__(self, wait: Callable[[Any], Any] = jax.block_until_ready) -> None:
        self._wait = wait
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self._ended: SimpleQueue[float] = SimpleQueue()
        self._steps: list[_Step] = []
        self._previous = 0.0  # when the step before ended
        Thread(target=self._follow, name="step times", daemon=True).start()

    def dispatched(self, at: float, output: Any) -> None:
        """A step was dispatched at this moment of `time.perf_counter`; `output` is an array that it computes."""
        self._steps.append(_Step(at, at, at, {}))
        self._outputs.put(output)

    def fetched(self, began: float, ended: float, spent: Mapping[str, float]) -> None:
        """The batch after the last dispatched step was fetched between these moments; `spent` has the seconds of that
        by cause, where it was more than loading."""
        self._steps[-1] = _Step(self._steps[-1].dispatched, began, ended, spent)

    def take(self) -> tuple[list[float], dict[str, float]]:
        """(seconds of each step since the last call, seconds without a step because its batch was late, by cause).
        Waits until all dispatched steps have ended."""
        steps: list[float] = []
        late: dict[str, float] = {"loader": 0.0}
        for step in self._steps:
            ended = self._ended.get()
            steps.append(ended - max(step.dispatched, self._previous))
            waited = max(0.0, step.fetched - max(step.began, ended))
            spent = sum(step.spent.values())
            part = min(1.0, waited / spent) if spent else 0.0  # what was done beside the step cost nothing
            for cause, seconds in step.spent.items():
                late[cause] = late.get(cause, 0.0) + part * seconds
            late["loader"] += waited - part * spent
            self._previous = ended
        self._steps.clear()
        return steps, late

    def close(self) -> None:
        """Ends the thread."""
        self._outputs.put(None)

    def _follow(self) -> None:
        while (output := self._outputs.get()) is not None:
            with suppress(jax.errors.JaxRuntimeError):  # a failed step is raised where its metrics are fetched
                self._wait(output)
            self._ended.put(time.perf_counter())
