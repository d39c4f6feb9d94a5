"""How long each step takes and how long the devices wait for batches, without making Python wait for the devices.

Steps are dispatched ahead, so the times at which Python gets there say nothing about them. A thread waits for each
step's loss and notes when it was there. A step begins when it was dispatched or when the one before it ended, whichever
is later: what runs between steps is in none. A batch that comes while a step runs costs nothing; only the time for
which the devices had nothing to do counts as waiting for the loader.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

import jax


class StepTimes:
    """Follows the steps of one run. `wait` blocks until a step's output is computed."""

    def __init__(self, wait: Callable[[Any], Any] = jax.block_until_ready) -> None:
        self._wait = wait
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self._ended: SimpleQueue[float] = SimpleQueue()
        self._steps: list[tuple[float, tuple[float, float]]] = []  # (dispatched, when its next batch was fetched)
        self._previous = 0.0  # when the step before ended
        Thread(target=self._follow, name="step times", daemon=True).start()

    def dispatched(self, at: float, output: Any) -> None:
        """A step was dispatched at this moment of `time.perf_counter`; `output` is an array that it computes."""
        self._steps.append((at, (at, at)))
        self._outputs.put(output)

    def fetched(self, began: float, ended: float) -> None:
        """The batch after the last dispatched step was fetched between these moments."""
        self._steps[-1] = (self._steps[-1][0], (began, ended))

    def take(self) -> tuple[list[float], float]:
        """(seconds of each step since the last call, seconds without a step because the loader was late). Waits until
        all dispatched steps have ended."""
        steps, loader = [], 0.0
        for dispatched, (began, fetched) in self._steps:
            ended = self._ended.get()
            steps.append(ended - max(dispatched, self._previous))
            loader += max(0.0, fetched - max(began, ended))
            self._previous = ended
        self._steps.clear()
        return steps, loader

    def close(self) -> None:
        """Ends the thread."""
        self._outputs.put(None)

    def _follow(self) -> None:
        while (output := self._outputs.get()) is not None:
            with suppress(jax.errors.JaxRuntimeError):  # a failed step is raised where its metrics are fetched
                self._wait(output)
            self._ended.put(time.perf_counter())
