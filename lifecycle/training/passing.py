"""Batches that a run passes over, after it went back to a checkpoint.

PaLM's runs went back about 100 steps from a spike of the loss and passed over 200 to 500 batches, those before and
during it; the spike did not come again (Chowdhery et al. 2022, section 5.1). Here they are the batches from the
checkpoint up to that of the faulty step. What must hold: which batch a step trains on follows from the data state and
the log's records of the times that the run went back, so a resumed run passes over the same ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lifecycle.model.params import Params
from lifecycle.training.batches import BatchSource, HostBatch

PASSED_OVER = "passed_over"  # in the data state: [step, batches passed over before it], by step


class PassingBatches:
    """The batches of `source`, some passed over. With none, its data state is the source's."""

    def __init__(self, source: BatchSource) -> None:
        self._source, self._first = source, source.state(0)
        self.passed: dict[int, int] = {}  # before which step, how many

    def number(self, step: int) -> int:
        """The batch of the source that `step` trains on."""
        return step + sum(count for before, count in self.passed.items() if before <= step)

    def pass_over(self, step: int, last: int) -> int:
        """Makes `step` train on the source's batch after `last`; the first batch that is passed over."""
        self.passed = {before: count for before, count in self.passed.items() if before < step}
        first = self.number(step)
        self.passed[step] = last + 1 - first
        return first

    def batch(self, step: int, params: Params) -> HostBatch:
        """This process's rows of the batch that `step` trains on."""
        return self._source.batch(self.number(step), params)

    def spent(self, step: int) -> Mapping[str, float]:
        """What took the time of making that batch."""
        return self._source.spent(self.number(step))

    def contents(self, step: int) -> list[dict[str, Any]]:
        """What is in each row of that batch."""
        return self._source.contents(self.number(step))

    def state(self, step: int) -> dict[str, Any]:
        """The source's state, with what was passed over so far."""
        passed = [list(entry) for entry in self.passed.items() if entry[0] <= step]
        return self._source.state(self.number(step)) | ({PASSED_OVER: passed} if passed else {})

    def begin(self) -> None:
        """Goes back to the state before the first step; what the run passes over stays so."""
        self._source.restore(self._first)

    def restore(self, state: dict[str, Any]) -> int:
        """Restores a state. What a run that went back to it passes over is no part of it."""
        return self._restored(state, self._source.restore)

    def continue_from(self, state: dict[str, Any]) -> int:
        """Restores the state of the run that this one goes on from; what that one has passed over stays so."""
        return self._restored(state, self._source.continue_from)

    def _restored(self, state: dict[str, Any], restore: Callable[[dict[str, Any]], int]) -> int:
        self.passed = dict(state.get(PASSED_OVER, []))
        number = restore({name: value for name, value in state.items() if name != PASSED_OVER})
        return number - sum(self.passed.values())

    def close(self) -> None:
        """Ends what the source prefetches with."""
        self._source.close()
