"""A reference model's log-probabilities of preference pairs, computed once before training.

A pass over a large set takes hours, so what is done is saved every half minute, and a killed pass goes on from there.
What must hold: the table is that of an undisturbed pass, and before the first step the model's own log-probabilities
of training rows are the table's. So both are computed with a stage's `precision`: the difference of 8-bit and plain
products, which would count as a preference, cancels. Held-out rows are measured with the plain weights, and so is their
reference.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.progress import Progress, Silent
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.params import Params
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import on_mesh
from lifecycle.training.heldout import each_batch
from lifecycle.training.objectives.objective import pair_logprobs
from lifecycle.training.packing import FixedRows, PairRows, Row
from lifecycle.training.state import param_specs

SAVE_EVERY_S = 30.0


class _LogprobTable(NamedTuple):
    """The log-probabilities `[num_pairs, 2]`, and how many rows of pairs have theirs."""

    logprobs: np.ndarray
    rows: int


def reference_logprobs(
    config: ModelConfig,
    params: Params,
    rows: PairRows,
    batch_size: int,
    mesh: Mesh,
    path: Path,
    progress: Progress | None = None,
    chunks: int = 1,
    precision: Precision | None = None,
) -> np.ndarray:
    """Log-probabilities `[num_pairs, 2]` (chosen, rejected) of every pair under fixed parameters; `chunks` of the
    vocabulary; `precision` of the layers' products.

    They are kept in `path`, whose name must identify weights, rows and precision; process 0 reads it. `progress` counts
    rows.
    """
    progress = progress or Silent()
    table, done = _load(path, rows.num_pairs)
    local = partial(pair_logprobs, config, chunks=chunks, precision=precision)
    logprobs = on_mesh(local, mesh, param_specs(config), spec("loss_rows"))
    saved_at = time.monotonic()
    for host, values in each_batch(logprobs, rows, batch_size, mesh, first=done)(params):
        is_pair = host["pair_mask"] > 0
        table[host["pair_ids"][is_pair]] = values[is_pair]
        done = min(done + batch_size, rows.num_rows)
        progress.update(done, total=rows.num_rows)
        if done == rows.num_rows or time.monotonic() - saved_at >= SAVE_EVERY_S:
            _save(path, _LogprobTable(table, done))
            saved_at = time.monotonic()
    return table


def _load(path: Path, num_pairs: int) -> _LogprobTable:
    """What has been computed so far: in all processes of a job, what the writing one sees."""
    table = _LogprobTable(np.zeros((num_pairs, 2), np.float32), 0)
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            table = _LogprobTable(stored["logprobs"], int(stored["rows"]))
    if jax.process_count() == 1:
        return table
    bits = multihost_utils.broadcast_one_to_all(table.logprobs.view(np.int32))  # a sum of floats would lose -0.0
    return _LogprobTable(np.array(bits).view(np.float32), from_writer(table.rows))


def _save(path: Path, table: _LogprobTable) -> None:
    if is_writer():
        unfinished = path.with_suffix(".tmp.npz")
        np.savez(unfinished, logprobs=table.logprobs, rows=table.rows)
        unfinished.replace(path)


class ReferenceRows(FixedRows):
    """Pair rows with `ref_logprobs [P, 2]` looked up in a table."""

    def __init__(self, rows: PairRows, table: np.ndarray) -> None:
        self._rows, self._table = rows, table

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._rows.num_rows

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the rows."""
        return self._rows.fingerprint  # the table depends on the rows and the weights that the run starts from

    def row(self, index: int) -> Row:
        """A row with `ref_logprobs`, `[P, 2]`."""
        row = dict(self._rows.row(index))
        row["ref_logprobs"] = self._table[row["pair_ids"]] * row["pair_mask"][:, None]
        return row

    def contents(self, index: int) -> dict[str, Any]:
        """Which pairs are in the row."""
        return self._rows.contents(index)
