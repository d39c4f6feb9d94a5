"""The one train step: `(state, batch) -> (state, metrics)`, jitted once, state donated.

An objective returns a sum, a count and further sums. Micro-batches add up sums and gradients of sums, and the global
count divides once: accumulation and data parallelism are exact whatever the masks. Loss and gradients are computed in
one manual `jax.shard_map` (`parallel/placement.py`); gradients cross the axes that hold whole copies of a parameter
once a step, after the last micro-batch. The optimizer is elementwise and left to XLA's partitioner, but for Muon's
products (`training/muon.py`): its state lies like its parameters.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch, PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, init_params, logical_axes
from lifecycle.model.routing import balanced
from lifecycle.parallel.mesh import AnyMesh, spec, tree_shardings
from lifecycle.parallel.placement import on_mesh, sum_gradients, sum_over_mesh
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums

type Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes; `step` counts finished steps."""

    params: Params
    opt_state: Any
    step: Any  # an int32 scalar, or its sharding


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: AnyMesh,
    shardings: TrainState,
    grad_accum: int = 1,
    bias_rate: float = 0.0,
) -> jax.stages.Wrapped:
    """One jitted step, `(TrainState, Batch) -> (TrainState, Metrics)`.

    A batch's arrays are `[grad_accum * B, ...]`; micro-batch `i` is rows `i::grad_accum`, so that each lies evenly over
    the mesh. Metrics: `loss` (mean per count), `count`, `grad_norm` and the objective's own means. `bias_rate`: by how
    much a router's selection bias moves towards an even load (`MoeConfig`).
    """

    specs = jax.tree.map(lambda place: place.spec, shardings.params)

    def local(params: Params, batch: Batch) -> tuple[Sums, Params]:
        sums, grads = _summed_gradients(objective, params, batch, grad_accum)
        return sum_over_mesh(sums, mesh), sum_gradients(grads, mesh, specs)

    gradients = on_mesh(local, mesh, specs, (P(), specs))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sums, grads = gradients(state.params, batch)
        divisor = jnp.maximum(sums.count, 1)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        params = balanced(params, sums.load, bias_rate)
        metrics = {"loss": sums.loss / divisor, "count": sums.count, "grad_norm": optax.global_norm(grads)}
        metrics |= sums.metric_means(divisor)
        return TrainState(params, opt_state, state.step + 1), metrics

    everywhere = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def _summed_gradients(objective: Objective, params: Params, batch: Batch, grad_accum: int) -> tuple[Sums, Params]:
    def loss_sum(params: Params, part: Batch) -> tuple[Array, Sums]:
        sums = objective(params, part)
        return sums.loss, sums

    gradients = jax.grad(loss_sum, has_aux=True)
    if grad_accum == 1:
        grads, sums = gradients(params, batch)
        return sums, grads
    parts = {k: x.reshape(-1, grad_accum, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(params, part)), None

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients, params, {k: x[0] for k, x in parts.items()}))
    (grads, sums), _ = jax.lax.scan(add, zero, parts)
    return sums, grads


def param_specs(config: ModelConfig) -> Any:
    """Where each parameter is cut: a tree like theirs of partition specs."""
    return jax.tree.map(lambda names: spec(*names), logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: AnyMesh) -> TrainState:
    """Shardings of the whole state: parameters by their logical axes, optimizer state like its parameters."""
    params = tree_shardings(mesh, logical_axes(config))
    everywhere = NamedSharding(mesh, P())
    places = dict(jax.tree_util.tree_leaves_with_path(params))

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        # a moment's path ends with its parameter's: ("mu", "blocks", "attention", "q") and ("blocks", "attention", "q")
        return next((places[path[i:]] for i in range(len(path)) if path[i:] in places), everywhere)

    shapes = jax.eval_shape(lambda key: optimizer.init(init_params(config, key)), jax.random.key(0))
    return TrainState(params, jax.tree_util.tree_map_with_path(place, shapes), everywhere)


def abstract_state(config: ModelConfig, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """Shapes and places of the whole state, without any array."""

    def place(shape: Any, where: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    shapes = jax.eval_shape(lambda key: _fresh(optimizer, init_params(config, key)), jax.random.key(0))
    return jax.tree.map(place, shapes, shardings)


def init_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, shardings: TrainState, key: PRNGKeyArray
) -> TrainState:
    """A fresh state, created sharded: no host holds more than its part."""
    return jax.jit(lambda key: _fresh(optimizer, init_params(config, key)), out_shardings=shardings)(key)


def state_from_params(params: Params, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """A fresh optimizer around given parameters: how SFT starts from pre-training's weights."""
    return jax.jit(partial(_fresh, optimizer), out_shardings=shardings)(params)


def _fresh(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
