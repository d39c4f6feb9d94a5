"""Passes over rows without training, and an objective's means over held-out ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import compiler_options
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
    function: Callable[[Any, Batch], T],
    rows: RowSource,
    batch_size: int,
    mesh: Mesh,
    first: int = 0,
    is_numbered: bool = False,
) -> Callable[[Any], Iterator[tuple[HostBatch, T]]]:
    """`function` over one pass of `rows`, from row `first` on, jitted once, with its results on every process. With
    `is_numbered` batches have the column `row`, counted over the whole pass."""
    options = compiler_options(mesh.devices.flat[0].device_kind)
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, P()), compiler_options=options)

    def results(params: Any) -> Iterator[tuple[HostBatch, T]]:
        for number, host in enumerate(one_epoch(rows, global_batch_size=batch_size, first=first)):
            row = {"row": np.arange(batch_size, dtype=np.int32) + first + number * batch_size} if is_numbered else {}
            yield host, jax.device_get(jitted(params, shard_batch(host | row, mesh)))

    return results


def heldout_means(
    model: ModelConfig,
    objective: Objective,
    rows: RowSource,
    batch_size: int,
    mesh: Mesh,
    held: Params | None = None,
) -> Measurement:
    """`heldout_loss`, its `heldout_count`, and the objective's own means, each over all of `rows`, which are the whole
    batch of a context. `held`: the parameters of the models that the objective holds."""
    others = held or {}

    def context_of(params: Params, batch: Batch) -> Any:
        return sum_over_mesh(objective.context(params, batch), mesh)

    def local(parts: tuple[Params, Any], batch: Batch) -> Sums:
        params, context = parts
        return replace(objective.loss(params, batch, context), load={}).over_mesh(mesh)

    specs = param_specs(model) | objective.held
    of_batch = each_batch(on_mesh(context_of, mesh, specs, P()), rows, batch_size, mesh, is_numbered=True)
    summed = each_batch(on_mesh(local, mesh, (specs, P()), P()), rows, batch_size, mesh, is_numbered=True)

    def totals(params: Params) -> Any:
        if not objective.has_context:
            return {}
        return jax.tree.map(lambda *values: sum(values), *(part for _, part in of_batch(params)))

    def measure(params: Params) -> dict[str, float]:
        params = params | others
        sums = reduce(add, (jax.tree.map(np.float64, part) for _, part in summed((params, totals(params)))))
        means = {"loss": sums.loss / sums.count, "count": sums.count, **sums.metric_means(sums.count)}
        found = {name: mean for name, mean in means.items() if sums.counts.get(name, 1)}
        found |= {name: value for name, value in sums.extremes.items() if np.isfinite(value)}
        return {f"heldout_{name}": float(value) for name, value in found.items()}

    def prepare(params: Params) -> None:
        params = params | others
        context = next(of_batch(params))[1] if objective.has_context else {}
        next(summed((params, context)))

    return Measurement(measure, prepare)
