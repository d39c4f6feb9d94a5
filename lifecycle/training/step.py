"""The train step, one for all objectives: `(state, batch) -> (state, metrics)`, jitted once, state donated.

An objective returns a sum, a count and further sums. Micro-batches add up sums and gradients of sums, and the global
count divides once: accumulation and data parallelism are exact whatever the masks. What a sum needs to know of the
whole batch is its context, which is computed before, over all micro-batches and devices. Loss and gradients run in one
manual `jax.shard_map` (`parallel/placement.py`); gradients are reduced over the axes that replicate a parameter once
per step, after the last micro-batch. The optimizer is elementwise and left to XLA's partitioner, except for Muon's
products (`training/muon.py`): its state is sharded like the parameters.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch
from lifecycle.model.params import Params
from lifecycle.model.routing import balanced
from lifecycle.parallel.collectives import axis_index
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.parallel.placement import on_mesh, sum_gradients, sum_over_mesh
from lifecycle.training.config import FaultsConfig
from lifecycle.training.faults import guarded
from lifecycle.training.freeze import merged, split
from lifecycle.training.micro_batches import micro_batches, num_learned
from lifecycle.training.objectives.neftune import STEP
from lifecycle.training.objectives.objective import Context, Objective
from lifecycle.training.objectives.router import load_metrics
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.reference_copy import Follow, stays
from lifecycle.training.rounding import rounded_like, widened
from lifecycle.training.run import NUM_TOKENS
from lifecycle.training.served import Served, as_they_are
from lifecycle.training.state import TrainState

type Metrics = dict[str, Array]

COUNTS = "counts/"  # before a metric's name: how much it is of in this step; 0: there is none
COMPUTED = "frac_computed"  # the share of micro-batches that a step did not pass over


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: AnyMesh,
    shardings: TrainState,
    grad_accum: int = 1,
    bias_rate: float = 0.0,
    faults: FaultsConfig | None = None,
    served: Served = as_they_are,
    follow: Follow = stays,
) -> jax.stages.Wrapped:
    """One jitted step, `(TrainState, Batch) -> (TrainState, Metrics)`; of an objective that holds other models, their
    parameters come third.

    A batch's arrays are `[grad_accum * B, ...]`; micro-batch `i` is rows `i::grad_accum`, so that each is spread evenly
    over the mesh. Metrics: `loss` (mean per count), `count`, `grad_norm`, `update_norm` (of the optimizer's change, its
    decay included), the objective's own means and extremes, the counts of those that have one (`COUNTS`), the experts'
    load, how many tokens the batch has (`NUM_TOKENS`), and `COMPUTED` of an objective that has empty rows.
    `bias_rate`: how much a step moves a router's selection bias towards an even load (`MoeConfig`). `faults`: what a
    step leaves out (`training/faults.py`), with a state for it; then also `skipped` and `faults_in_row`. `served`: the
    parameters as the objective sees them (`training/served.py`). `follow`: how a reference moves behind them
    (`training/reference_copy.py`).
    """

    trained, frozen = jax.tree.map(lambda sharding: sharding.spec, (shardings.trained, shardings.frozen))
    specs = trained, frozen | objective.held

    def local(parts: tuple[Params, Params], batch: Batch) -> tuple[Sums, Params, Metrics]:
        batch = numbered(batch) if objective.has_context else batch
        context = sum_over_mesh(local_context(objective, parts, batch, grad_accum), mesh)
        learned = num_learned(batch, grad_accum, mesh) if objective.has_empty_rows else None
        sums, grads = local_gradients(objective, parts, batch, grad_accum, context, learned)
        computed = {} if learned is None else {COMPUTED: (learned > 0).mean()}
        return sums.over_mesh(mesh), sum_gradients(grads, mesh, specs[0]), computed

    gradients = on_mesh(local, mesh, specs, (P(), specs[0], P()))

    def step(state: TrainState, batch: Batch, held: Params | None = None) -> tuple[TrainState, Metrics]:
        if objective.needs_step:
            batch = {**batch, STEP: jnp.broadcast_to(state.step, next(iter(batch.values())).shape[:1])}
        trained, frozen = split(served(state.params), state.frozen)
        sums, grads, computed = gradients((trained, frozen | (held or {})), batch)
        divisor = jnp.maximum(sums.count, 1)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        before = widened(state.trained)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        trained = cast(Params, optax.apply_updates(before, updates))
        trained, _ = split(balanced(merged(trained, state.frozen), sums.load, bias_rate), state.frozen)
        trained = rounded_like(state.trained, trained, state.step)
        metrics = {"loss": sums.loss / divisor, "count": sums.count, "grad_norm": optax.global_norm(grads)}
        metrics |= {"update_norm": optax.global_norm(updates)} | sums.metric_means(divisor) | load_metrics(sums.load)
        metrics |= sums.extremes | {NUM_TOKENS: (batch["segment_ids"] > 0).sum(dtype=jnp.int32)}
        counts = sums.counts | {name: jnp.isfinite(value) for name, value in sums.extremes.items()}
        metrics |= {COUNTS + name: count for name, count in counts.items()} | computed
        after = TrainState(trained, state.frozen, opt_state, state.step + 1, state.faults)
        if faults is not None and faults.is_guarded:
            after, metrics = guarded(faults, state, after, metrics)
        return replace(after, frozen=follow(after.trained, after.frozen, after.step)), metrics

    everywhere = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def numbered(batch: Batch) -> Batch:
    """A device's rows with their numbers in the global batch, by which parts of it put values beside each other."""
    rows = next(iter(batch.values())).shape[0]
    return {**batch, "row": axis_index("batch") * rows + jnp.arange(rows, dtype=jnp.int32)}


def local_context(objective: Objective, parts: tuple[Params, Params], batch: Batch, grad_accum: int) -> Context:
    """A device's own part of the context of a numbered batch."""
    if not objective.has_context:
        return {}
    params = jax.lax.stop_gradient(merged(*parts))
    if grad_accum == 1:
        return objective.context(params, batch)
    micro = micro_batches(batch, grad_accum)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, objective.context(params, part)), None

    shapes = jax.eval_shape(objective.context, params, {name: x[0] for name, x in micro.items()})
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), micro)[0]


def local_gradients(
    objective: Objective,
    parts: tuple[Params, Params],
    batch: Batch,
    grad_accum: int,
    context: Context | None = None,
    learned: Array | None = None,
) -> tuple[Sums, Params]:
    """A device's own sums and float32 gradients of (trained, frozen) parameters, before any is summed over the mesh.
    `learned`: as `num_learned` says, by which micro-batches without a target are passed over."""
    trained, frozen = parts
    return _summed_gradients(partial(_of_parts, objective, frozen, context or {}), trained, batch, grad_accum, learned)


def of_own_rows(
    objective: Objective, parts: tuple[Params, Params], batch: Batch, grad_accum: int
) -> tuple[Sums, Params]:
    """`local_gradients` as if the device's rows were the whole batch: for comparing devices with each other."""
    batch = numbered(batch)
    context = local_context(objective, parts, batch, grad_accum)
    return local_gradients(objective, parts, batch, grad_accum, context)


def _of_parts(objective: Objective, frozen: Params, context: Context, trained: Params, batch: Batch) -> Sums:
    return objective.loss(merged(trained, frozen), batch, context)


def _summed_gradients(
    loss: Callable[[Params, Batch], Sums], params: Params, batch: Batch, grad_accum: int, learned: Array | None
) -> tuple[Sums, Params]:
    def loss_sum(params: Params, part: Batch) -> tuple[Array, Sums]:
        sums = loss(params, part)
        return sums.minimised, sums

    def gradients(params: Params, part: Batch) -> tuple[Params, Sums]:
        grads, sums = jax.grad(loss_sum, has_aux=True)(params, part)
        return widened(grads), sums

    if grad_accum == 1:
        grads, sums = gradients(params, batch)
        return sums, grads
    parts = micro_batches(batch, grad_accum)

    def with_part(total: tuple[Params, Sums], part: Batch) -> tuple[Params, Sums]:
        grads, sums = gradients(params, part)
        return jax.tree.map(jnp.add, total[0], grads), total[1] + sums

    def add(total: tuple[Params, Sums], micro: tuple[Batch, Array | None]) -> tuple[tuple[Params, Sums], None]:
        part, own = micro
        if own is None:
            return with_part(total, part), None
        return jax.lax.cond(own > 0, with_part, lambda total, _: total, total, part), None

    shapes = jax.eval_shape(gradients, params, {k: x[0] for k, x in parts.items()})
    zero = jax.tree.map(jnp.zeros_like, shapes[0]), shapes[1].empty()
    (grads, sums), _ = jax.lax.scan(add, zero, (parts, learned))
    return sums, grads
