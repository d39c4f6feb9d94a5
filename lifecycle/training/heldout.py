"""Passes over rows without training: an objective's held-out means, and a reference model's log-probabilities."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import on_mesh, shard_batch, sum_over_mesh
from lifecycle.training.batches import HostBatch, one_epoch
from lifecycle.training.objectives.objective import Objective, pair_logprobs
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.packing import PairRows, Row, RowSource
from lifecycle.training.state import param_specs


def _each_batch[T](
    function: Callable[[Params, Batch], T], rows: RowSource, batch_size: int, mesh: Mesh
) -> Callable[[Params], Iterator[tuple[HostBatch, T]]]:
    """`function` over one pass of `rows`, jitted once, with its results on every process."""
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, P()))

    def results(params: Params) -> Iterator[tuple[HostBatch, T]]:
        for host in one_epoch(rows, global_batch_size=batch_size):
            yield host, jax.device_get(jitted(params, shard_batch(host, mesh)))

    return results


def heldout_means(
    model: ModelConfig, objective: Objective, rows: RowSource, batch_size: int, mesh: Mesh
) -> Callable[[Params], dict[str, float]]:
    """A function from parameters to `heldout_loss` and the objective's own means, each over all of `rows`."""

    def local(params: Params, batch: Batch) -> Sums:
        return sum_over_mesh(replace(objective(params, batch), load={}), mesh)

    summed = on_mesh(local, mesh, param_specs(model), P())
    results = _each_batch(summed, rows, batch_size, mesh)

    def measure(params: Params) -> dict[str, float]:
        parts = [jax.tree.map(float, part) for _, part in results(params)]
        sums = jax.tree.map(lambda *values: sum(values), *parts)
        means = {"loss": sums.loss / sums.count, **sums.metric_means(sums.count)}
        return {f"heldout_{name}": mean for name, mean in means.items()}

    return measure


def reference_logprobs(config: ModelConfig, params: Params, rows: PairRows, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Log-probabilities `[num_pairs, 2]` (chosen, rejected) of every pair under fixed parameters."""
    table = np.zeros((rows.num_pairs, 2), np.float32)
    logprobs = on_mesh(partial(pair_logprobs, config), mesh, param_specs(config), spec("loss_rows"))
    answers = _each_batch(logprobs, rows, batch_size, mesh)
    for host, values in answers(params):
        is_pair = host["pair_mask"] > 0
        table[host["pair_ids"][is_pair]] = values[is_pair]
    return table


class ReferenceRows:
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
