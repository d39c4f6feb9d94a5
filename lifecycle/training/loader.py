"""Batches from a row source: this process's slice of global batch 0, 1, 2, ..., prefetched by Grain's threads.

Global batch `s` is rows `s * B .. (s + 1) * B - 1` of the source. What must hold: it is the same for every number of
processes, and for a run that starts at step `s` as for one that arrives there. So the state of the data is one
number, kept in a checkpoint with what it counts in.
"""

import operator
import sys
from collections.abc import Iterator
from typing import Any, SupportsIndex

import grain
import numpy as np

from lifecycle.core.config import ConfigError
from lifecycle.training.packing import Row, RowSource, empty_row

type HostBatch = dict[str, np.ndarray]  # [B / process_count, T] arrays

# Batches made ahead, each by its own thread. A batch takes a millisecond on a local disk; four hide slow storage.
PREFETCH = 4


class DataStateError(ValueError):
    """A checkpoint's data state that does not belong to this run's data."""


class _Batches:
    """Random access to this process's slice of each global batch."""

    def __init__(self, source: RowSource, global_batch_size: int, process_index: int, process_count: int) -> None:
        if global_batch_size < 1 or global_batch_size % process_count:
            fitting = max(1, round(global_batch_size / process_count)) * process_count
            raise ConfigError(
                f"global_batch_size={global_batch_size} does not divide among {process_count} processes; "
                f"nearest that does: {fitting}"
            )
        self._source, self._global_size = source, global_batch_size
        self._size = global_batch_size // process_count
        self._offset = process_index * self._size

    def __len__(self) -> int:
        return sys.maxsize // self._global_size  # endless: as many as there are row numbers

    def __getitem__(self, index: SupportsIndex) -> HostBatch:
        first = operator.index(index) * self._global_size + self._offset
        return _stacked([self._source.row(number) for number in range(first, first + self._size)])

    def epoch(self) -> Iterator[HostBatch]:
        for start in range(self._offset, self._offset + self._source.num_rows, self._global_size):
            yield self._until_end(start)

    def _until_end(self, first: int) -> HostBatch:
        rows = [self._source.row(i) for i in range(first, min(first + self._size, self._source.num_rows))]
        padding = empty_row(rows[0] if rows else self._source.row(0))
        return _stacked(rows + [padding] * (self._size - len(rows)))


def _stacked(rows: list[Row]) -> HostBatch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_loader(
    source: RowSource,
    *,
    global_batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = PREFETCH,
) -> grain.DatasetIterator[HostBatch]:
    """This process's slice of the global batches from `start_step` on, without end.

    `prefetch` batches are made ahead; 0 makes each when it is asked for. An error while a batch is made is raised by
    `next`. `close()` on the iterator ends its threads. Raises `ConfigError` when the batch does not divide.
    """
    batches = _Batches(source, global_batch_size, process_index, process_count)
    data: grain.MapDataset[HostBatch] = grain.MapDataset.source(batches)
    reading = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return iter(data[start_step:].to_iter_dataset(reading))


def one_epoch(
    source: RowSource, *, global_batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[HostBatch]:
    """This process's slices of one pass over epoch 0; the last batch is filled up with padding rows. For evaluation."""
    return _Batches(source, global_batch_size, process_index, process_count).epoch()


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
