"""The one train step: `(state, batch) -> (state, metrics)`, jitted once, state donated.

An objective returns a sum, a count and further sums. Micro-batches add up sums and gradients of sums, and the global
count divides once: accumulation and data parallelism are exact whatever the masks. The mesh is declared by the
shardings of state and batch; XLA's partitioner places the collectives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.config import ConfigError
from lifecycle.core.mesh import sharding, tree_shardings
from lifecycle.core.typing import Array, Batch, PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, init_params, logical_axes
from lifecycle.training.objectives.language import Sums

type Objective = Callable[[Params, Batch], Sums]
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
    mesh: Mesh,
    shardings: TrainState,
    grad_accum: int = 1,
) -> jax.stages.Wrapped:
    """One jitted step, `(TrainState, Batch) -> (TrainState, Metrics)`.

    A batch's arrays are `[grad_accum * B, ...]`; micro-batch `i` is rows `i::grad_accum`, so that each lies evenly over
    the mesh. Metrics: `loss` (mean per count), `count`, `grad_norm` and the objective's own means.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, count, aux), grads = _summed_gradients(objective, state.params, batch, grad_accum)
        divisor = jnp.maximum(count, 1)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        metrics = {"loss": loss / divisor, "count": count, "grad_norm": optax.global_norm(grads)}
        metrics |= {name: value / divisor for name, value in aux.items()}
        return TrainState(params, opt_state, state.step + 1), metrics

    everywhere = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))


def _summed_gradients(objective: Objective, params: Params, batch: Batch, grad_accum: int) -> tuple[Sums, Params]:
    def loss_sum(params: Params, part: Batch) -> tuple[Array, Sums]:
        sums = objective(params, part)
        return sums[0], sums

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


def state_shardings(config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shardings of the whole state: parameters by their logical axes, optimizer state like its parameters."""
    params = tree_shardings(mesh, logical_axes(config))
    everywhere = NamedSharding(mesh, P())
    places = dict(jax.tree_util.tree_leaves_with_path(params))

    def place(path: tuple[Any, ...], _: Any) -> NamedSharding:
        # a moment's path ends with its parameter's: ("mu", "blocks", "attention", "q") and ("blocks", "attention", "q")
        return next((places[path[i:]] for i in range(len(path)) if path[i:] in places), everywhere)

    shapes = jax.eval_shape(lambda key: optimizer.init(init_params(config, key)), jax.random.key(0))
    return TrainState(params, jax.tree_util.tree_map_with_path(place, shapes), everywhere)


def init_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, shardings: TrainState, key: PRNGKeyArray
) -> TrainState:
    """A fresh state, created sharded: no host holds more than its part."""

    def build(key: PRNGKeyArray) -> TrainState:
        params = init_params(config, key)
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return jax.jit(build, out_shardings=shardings)(key)


def state_from_params(params: Params, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """A fresh optimizer around given parameters: how SFT starts from pre-training's weights."""

    def build(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    return jax.jit(build, out_shardings=shardings)(params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the mesh's data axes."""
    return sharding(mesh, "batch")


def process_share(mesh: Mesh) -> tuple[int, int]:
    """(which part of a batch's rows this process's devices hold, of how many): processes that share a model's tensors
    hold the same rows. Raises `ConfigError` when the parts are not alike."""
    rows = batch_sharding(mesh)
    ways = math.prod(mesh.shape[axis] for axis in rows.spec[0])
    held = rows.addressable_devices_indices_map((ways,)).values()
    starts = sorted({index[0].start or 0 for index in held if index is not None})
    part, rest = divmod(starts[0], len(starts))
    if rest or ways % len(starts) or starts != list(range(starts[0], starts[0] + len(starts))):
        raise ConfigError(
            f"mesh: one process's devices hold rows {starts} of {ways} groups; choose mesh.tensor so that it divides "
            "the devices of a process, or is a multiple of them"
        )
    return part, ways // len(starts)
