"""Tables of what a model says of rows, filled by one pass over them before training.

A pass over a large set takes hours, so what is done is saved, every half minute or, where saving takes long, as seldom
as costs a twentieth of the time; a killed pass goes on from there. What must hold: the table is that of an undisturbed
pass, in each process of a job.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.progress import Progress, Silent
from lifecycle.training.packing import FixedRows, RowSource

SAVE_EVERY_S, SAVING_SHARE = 30.0, 0.05

type Table = dict[str, np.ndarray]  # by column, `[num, ...]`, of four bytes each
# From the number of rows that are done to the parts of the table that each further batch of rows fills: at which
# places, with what.
type Parts = Callable[[int], Iterator[tuple[np.ndarray, Table]]]


def filled_table(
    path: Path, blank: Table, parts: Parts, batch_size: int, num_rows: int, progress: Progress | None = None
) -> Table:
    """The table `blank` with what the first `num_rows` rows fill, in batches of `batch_size`. It is kept in `path`,
    whose name must identify all that decides it; process 0 reads it. `progress` counts rows."""
    progress = progress or Silent()
    table, done = _load(path, blank)
    saved_at, saving_s = time.monotonic(), 0.0
    if done >= num_rows:
        return table
    for places, values in parts(done):
        for name, column in table.items():
            column[places] = values[name]
        done += batch_size
        progress.update(min(done, num_rows), total=num_rows)
        if done >= num_rows or time.monotonic() - saved_at >= max(SAVE_EVERY_S, saving_s / SAVING_SHARE):
            began = time.monotonic()
            _save(path, table, done)
            saved_at = time.monotonic()
            saving_s = saved_at - began
        if done >= num_rows:
            break
    return table


def _load(path: Path, blank: Table) -> tuple[Table, int]:
    """What has been computed so far, and of how many rows: in all processes of a job, what the writing one sees."""
    table, done = blank, 0
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            table, done = {name: stored[name] for name in blank}, int(stored["rows"])
    if jax.process_count() == 1:
        return table, done
    # bits: a sum of floats would lose -0.0
    bits = multihost_utils.broadcast_one_to_all({name: values.view(np.int32) for name, values in table.items()})
    return {name: np.array(values).view(blank[name].dtype) for name, values in bits.items()}, from_writer(done)


def _save(path: Path, table: Table, done: int) -> None:
    if is_writer():
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, allow_pickle=False, **table, rows=np.array(done))
        unfinished.replace(path)


class TableRows[R: RowSource](FixedRows):
    """Rows with columns that are looked up in a table, which depends on the rows and on what is in the stage's key.
    What uses it defines `row`."""

    def __init__(self, rows: R, table: Table) -> None:
        self._rows, self._table = rows, table

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._rows.num_rows

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the rows."""
        return self._rows.fingerprint

    def contents(self, index: int) -> dict[str, Any]:
        """What is in the row."""
        return self._rows.contents(index)
