"""Batch sources: where a step's batches come from. One interface, and its implementation for rows.

A batch source returns the batch of any step; the batch may depend on the weights. Rows are index arithmetic: global
batch `s` is rows `s * B .. (s + 1) * B - 1` of a row source, prefetched by Grain's threads; in a run that continues one
with another batch size, all rows from the next one on follow, and with other rows those that come after what was read.
What must hold: a step's batch depends neither on the number of processes nor on the step that the run was resumed from.
"""

import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, SupportsIndex

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.model.params import Params
from lifecycle.parallel.placement import rows_of_process
from lifecycle.training.packing import DataStateError, RowSource, stacked

type HostBatch = dict[str, np.ndarray]  # [this process's rows of B, ...] arrays

# Batches made ahead, each by its own thread. A batch takes a millisecond on a local disk; four hide slow storage.
PREFETCH = 4


class BatchSource(Protocol):
    """Makes the batches of a run. All processes of a job make the same calls."""

    def batch(self, step: int, params: Params) -> HostBatch:
        """This process's rows of the batch that step `step` (from 0 on) trains on, in the order of `rows_of_process`.

        `params` are the weights before that step; their computation may still be running.
        """
        ...

    def spent(self, step: int) -> Mapping[str, float]:
        """The seconds that making that batch took by cause, as in `core/timesheet.py`; the rest is loading."""
        ...

    def contents(self, step: int) -> list[dict[str, Any]]:
        """What is in each row of that batch, JSON-ready, of all processes' rows."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """The state that a checkpoint stores after `step` finished steps, JSON-ready. Later batches may have been made
        already: a restored run makes them again."""
        ...

    def restore(self, state: dict[str, Any]) -> int:
        """Restores a state, saved by any number of processes; returns the next step. Raises `DataStateError` for the
        state of other data."""
        ...

    def continue_from(self, state: dict[str, Any]) -> int:
        """`restore` for the state of the run that this one goes on from, whose batches had other settings."""
        ...

    def close(self) -> None:
        """Ends the threads and anything else that prefetches."""
        ...


class RowBatches:
    """Consecutive rows of `rows` as batches of `global_batch_size`, whatever the weights.

    `held`: this process's rows, by their index in a batch. `prefetch` batches are made ahead; 0 makes each on demand.
    An error in making a batch is raised by `batch`.
    """

    def __init__(
        self, rows: RowSource, global_batch_size: int, held: Sequence[int], *, prefetch: int = PREFETCH
    ) -> None:
        self._rows, self._global_batch_size, self._held = rows, global_batch_size, held
        self._offset = 0  # of the rows: not 0 after batches of another size, or other rows
        self._past: list[dict[str, Any]] = []  # the phases before these rows
        self._reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
        self._ahead: grain.DatasetIterator[HostBatch] | None = None
        self._next = 0  # the step of the first batch in `_ahead`

    @classmethod
    def on_mesh(cls, rows: RowSource, global_batch_size: int, mesh: Mesh) -> Self:
        """The batches of this process in a job that trains on `mesh`."""
        return cls(rows, global_batch_size, rows_of_process(mesh, global_batch_size, jax.process_index()))

    def batch(self, step: int, params: Params | None = None) -> HostBatch:
        """The batch of `step`; already prefetched if steps are taken in order."""
        if self._ahead is None or step != self._next:
            self.close()
            batches = _Random(self._rows, self._global_batch_size, self._held, self._offset)
            self._ahead = iter(grain.MapDataset.source(batches)[step:].to_iter_dataset(self._reading))
        self._next = step + 1
        return next(self._ahead)

    def spent(self, step: int) -> Mapping[str, float]:
        """Nothing but loading."""
        return {}

    def contents(self, step: int) -> list[dict[str, Any]]:
        """What is in each row of the batch of `step`, with the row's number."""
        first = self._offset + step * self._global_batch_size
        return [{"row": row, **self._rows.contents(row)} for row in range(first, first + self._global_batch_size)]

    def state(self, step: int) -> dict[str, Any]:
        """The step, its first row, the batch size and the rows' fingerprint; of rows that may change, also their phase
        and those before it."""
        size = self._global_batch_size
        row = self._offset + step * size
        state = {"step": step, "row": row, "global_batch_size": size, "source": self._rows.fingerprint}
        phases = {"phase": dict(self._rows.phase), "past": self._past}
        return state | {name: value for name, value in phases.items() if value}

    def restore(self, state: dict[str, Any]) -> int:
        """The state's step; raises `DataStateError` if the rows or the batch size have changed."""
        step, size = state["step"], state["global_batch_size"]
        past = state.get("past", [])
        rows = self._rows.after(past)
        self._require_same(rows, state)
        if size != self._global_batch_size:
            raise DataStateError(
                f"the checkpoint at step {step} counts batches of {size} rows, now they have "
                f"{self._global_batch_size}; set global_batch_size={size} or start a new run"
            )
        self._go_on(rows, past, state["row"], step)
        return step

    def continue_from(self, state: dict[str, Any]) -> int:
        """The state's step, from which on the batches have this size and these rows: the next row is the one that was
        to come, or the first one of a new phase. Raises `DataStateError` if the state is of other data."""
        past, phase = state.get("past", []), state.get("phase", {})
        if phase == self._rows.phase:
            rows, row = self._rows.after(past), state["row"]
            self._require_same(rows, state)
        else:
            past, row = [*past, {**phase, "rows": state["row"], "source": state["source"]}], 0
            rows = self._rows.after(past)
        self._go_on(rows, past, row, state["step"])
        return state["step"]

    def _go_on(self, rows: RowSource, past: list[dict[str, Any]], row: int, step: int) -> None:
        """Makes `row` the first one of the batch of `step`."""
        self._rows, self._past, self._offset = rows, past, row - step * self._global_batch_size
        self.close()

    def _require_same(self, rows: RowSource, state: dict[str, Any]) -> None:
        if state["source"] != rows.fingerprint:
            raise DataStateError(
                f"the checkpoint at step {state['step']} was made from other data (source {state['source'][:12]}, now "
                f"{rows.fingerprint[:12]}): documents, tokenizer, seq_len, mixture or seed differ; restore them or "
                "start a new run"
            )

    def close(self) -> None:
        """Ends the threads; `batch` starts them again."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None


class _Random:
    """Random access to the rows `held` of each global batch."""

    def __init__(self, rows: RowSource, global_batch_size: int, held: Sequence[int], offset: int) -> None:
        self._rows, self._global_batch_size, self._held, self._offset = rows, global_batch_size, held, offset

    def __len__(self) -> int:
        return sys.maxsize // self._global_batch_size  # endless: as many as there are row numbers

    def __getitem__(self, index: SupportsIndex) -> HostBatch:
        first = self._offset + operator.index(index) * self._global_batch_size
        return stacked([self._rows.row(first + row) for row in self._held], len(self._held))


def one_epoch(rows: RowSource, *, global_batch_size: int, first: int = 0) -> Iterator[HostBatch]:
    """Full batches of one pass over epoch 0, from row `first` on, the last one padded. For evaluation."""
    for begin in range(first, rows.num_rows, global_batch_size):
        part = [rows.row(i) for i in range(begin, min(begin + global_batch_size, rows.num_rows))]
        yield stacked(part, global_batch_size)
