"""Batches from a row source: this process's rows of global batch 0, 1, 2, ..., prefetched by Grain's threads.

Global batch `s` is rows `s * B .. (s + 1) * B - 1` of the source. What must hold: it is the same for every number of
processes, and for a run that starts at step `s` as for one that arrives there. So the state of the data is one
number, kept in a checkpoint with what it counts in.
"""

import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import numpy as np

from lifecycle.training.packing import Row, RowSource, empty_row

type HostBatch = dict[str, np.ndarray]  # [this process's rows of B, T] arrays

# Batches made ahead, each by its own thread. A batch takes a millisecond on a local disk; four hide slow storage.
PREFETCH = 4


class DataStateError(ValueError):
    """A checkpoint's data state that does not belong to this run's data."""


class _Batches:
    """Random access to some rows (`held`, by their place in it) of each global batch."""

    def __init__(self, source: RowSource, global_batch_size: int, held: Sequence[int]) -> None:
        self._source, self._global_size, self._held = source, global_batch_size, held

    def __len__(self) -> int:
        return sys.maxsize // self._global_size  # endless: as many as there are row numbers

    def __getitem__(self, index: SupportsIndex) -> HostBatch:
        first = operator.index(index) * self._global_size
        return _stacked([self._source.row(first + place) for place in self._held])


def _stacked(rows: list[Row]) -> HostBatch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_loader(
    source: RowSource,
    *,
    global_batch_size: int,
    start_step: int = 0,
    held: Sequence[int] | None = None,
    prefetch: int = PREFETCH,
) -> grain.DatasetIterator[HostBatch]:
    """The rows `held` (places in a batch; None: all) of the global batches from `start_step` on, without end.

    `prefetch` batches are made ahead; 0 makes each when it is asked for. An error while a batch is made is raised by
    `next`. `close()` on the iterator ends its threads.
    """
    batches = _Batches(source, global_batch_size, range(global_batch_size) if held is None else held)
    data: grain.MapDataset[HostBatch] = grain.MapDataset.source(batches)
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return iter(data[start_step:].to_iter_dataset(reading))


def one_epoch(source: RowSource, *, global_batch_size: int) -> Iterator[HostBatch]:
    """Whole batches of one pass over epoch 0; the last one is filled up with padding rows. For evaluation."""
    for first in range(0, source.num_rows, global_batch_size):
        rows = [source.row(i) for i in range(first, min(first + global_batch_size, source.num_rows))]
        yield _stacked(rows + [empty_row(rows[0])] * (global_batch_size - len(rows)))


def data_state(source: RowSource, *, global_batch_size: int, step: int) -> dict[str, Any]:
    """What a checkpoint keeps of the data after `step` finished steps; JSON-ready."""
    return {"step": step, "global_batch_size": global_batch_size, "source": source.fingerprint}


def resume_step(state: dict[str, Any], source: RowSource, *, global_batch_size: int) -> int:
    """The step to give `make_loader` as `start_step`; raises `DataStateError` when the data has changed."""
    if state["source"] != source.fingerprint:
        raise DataStateError(
            f"the checkpoint at step {state['step']} was made from other data (source {state['source'][:12]}, now "
            f"{source.fingerprint[:12]}): documents, tokenizer, seq_len or seed differ; restore them or start a new run"
        )
    if state["global_batch_size"] != global_batch_size:
        raise DataStateError(
            f"the checkpoint at step {state['step']} counts batches of {state['global_batch_size']} rows, now they "
            f"have {global_batch_size}; set global_batch_size={state['global_batch_size']} or start a new run"
        )
    return state["step"]
