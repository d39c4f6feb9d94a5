"""A reference model's log-probabilities of groups of answers, computed once before training.

What must hold: before the first step the model's own log-probabilities of training rows are the table's. So both are
computed with a stage's `precision`: the difference of 8-bit and plain products, which would count as a preference,
cancels. Held-out rows are measured with the plain weights, and so is their reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.progress import Progress
from lifecycle.core.typing import Array, Batch
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.params import Params
from lifecycle.parallel.columns import declare
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import on_mesh
from lifecycle.training.group_rows import OTHER, GroupRows
from lifecycle.training.heldout import each_batch
from lifecycle.training.objectives.objective import group_logprobs
from lifecycle.training.packing import Row
from lifecycle.training.state import param_specs
from lifecycle.training.tables import Table, TableRows, filled_table

REFERENCE, OF_OTHERS = "ref_logprobs", f"{OTHER}ref_logprobs"  # columns: of the segments, of the sequences beside them
declare("segment", REFERENCE, OF_OTHERS)


@dataclass(frozen=True)
class ReferenceSettings:
    """How a reference is computed: as the stage's steps compute the same rows. `chunks` of the vocabulary, `precision`
    of the layers' products, `length_alpha` as in `DpoConfig`."""

    chunks: int = 1
    precision: Precision | None = None
    length_alpha: float | None = None


def reference_logprobs(
    config: ModelConfig,
    params: Params,
    rows: GroupRows,
    batch_size: int,
    mesh: Mesh,
    path: Path,
    progress: Progress | None = None,
    settings: ReferenceSettings | None = None,
    num_rows: int | None = None,
) -> Table:
    """Log-probabilities of the segments of every group in the first `num_rows` rows (None: all) under fixed parameters,
    and of the sequences beside them if the rows have some. Those of further groups are NaN.

    They are kept in `path`, whose name must identify weights, rows and settings; process 0 reads it. `progress` counts
    rows.
    """
    settings = settings or ReferenceSettings()
    columns = (REFERENCE, OF_OTHERS) if rows.has_others else (REFERENCE,)
    local = partial(_both, config, rows, settings)
    logprobs = on_mesh(local, mesh, param_specs(config), {name: spec("loss_rows") for name in columns})

    def parts(done: int) -> Iterator[tuple[np.ndarray, Table]]:
        for host, values in each_batch(logprobs, rows, batch_size, mesh, first=done)(params):
            is_group = host["group_mask"] > 0
            yield host["group_ids"][is_group], {name: np.asarray(values[name])[is_group] for name in columns}

    empty = {name: np.full((rows.num_groups, rows.size), np.nan, np.float32) for name in columns}
    return filled_table(path, empty, parts, batch_size, min(num_rows or rows.num_rows, rows.num_rows), progress)


def _both(
    config: ModelConfig, rows: GroupRows, settings: ReferenceSettings, params: Params, batch: Batch
) -> dict[str, Array]:
    logprobs = partial(group_logprobs, config, params, batch, rows.size, settings.chunks, settings.precision)
    found = {REFERENCE: logprobs(length_alpha=settings.length_alpha)}
    return found | ({OF_OTHERS: logprobs(of_others=True)} if rows.has_others else {})


class ReferenceRows(TableRows[GroupRows]):
    """Group rows with a reference's log-probabilities `[P, k]`, looked up in a table."""

    def row(self, index: int) -> Row:
        """A row with the reference's columns."""
        row = dict(self._rows.row(index))
        for name, values in self._table.items():
            row[name] = np.where(row["group_mask"][:, None] > 0, values[row["group_ids"]], np.float32(0))
        return row
