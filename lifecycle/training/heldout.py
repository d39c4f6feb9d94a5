"""Passes over rows without training, and an objective's means over held-out ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.placement import on_mesh, shard_batch, sum_over_mesh
from lifecycle.training.batches import HostBatch, one_epoch
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.packing import RowSource
from lifecycle.training.state import param_specs


@dataclass(frozen=True)
class Measurement:
    """Metrics of parameters by name; `prepare` compiles what `measure` runs, and runs a part of it."""

    measure: Callable[[Params], dict[str, float]]
    prepare: Callable[[Params], object]

    def __call__(self, params: Params) -> dict[str, float]:
        """The metrics."""
        return self.measure(params)


def each_batch[T](
    function: Callable[[Params, Batch], T], rows: RowSource, batch_size: int, mesh: Mesh, first: int = 0
) -> Callable[[Params], Iterator[tuple[HostBatch, T]]]:
    """`function` over one pass of `rows`, from row `first` on, jitted once, with its results on every process."""
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, P()))

    def results(params: Params) -> Iterator[tuple[HostBatch, T]]:
        for host in one_epoch(rows, global_batch_size=batch_size, first=first):
            yield host, jax.device_get(jitted(params, shard_batch(host, mesh)))

    return results


def heldout_means(
    model: ModelConfig, objective: Objective, rows: RowSource, batch_size: int, mesh: Mesh
) -> Measurement:
    """`heldout_loss` and the objective's own means, each over all of `rows`."""

    def local(params: Params, batch: Batch) -> Sums:
        return sum_over_mesh(replace(objective(params, batch), load={}), mesh)

    summed = on_mesh(local, mesh, param_specs(model), P())
    results = each_batch(summed, rows, batch_size, mesh)

    def measure(params: Params) -> dict[str, float]:
        parts = [jax.tree.map(float, part) for _, part in results(params)]
        sums = jax.tree.map(lambda *values: sum(values), *parts)
        means = {"loss": sums.loss / sums.count, **sums.metric_means(sums.count)}
        return {f"heldout_{name}": mean for name, mean in means.items()}

    return Measurement(measure, prepare=lambda params: next(results(params), None))
