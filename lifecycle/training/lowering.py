"""Traces the train step from shapes alone, to compile it for devices that are not present."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_in_use, logical_axes
from lifecycle.parallel.columns import TOKEN_COLUMNS
from lifecycle.parallel.mesh import AnyMesh, computing_on, tree_shardings
from lifecycle.parallel.placement import batch_sharding
from lifecycle.training.config import TrainConfig
from lifecycle.training.faults import abstract_faults
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.rounding import holding
from lifecycle.training.served import served_by
from lifecycle.training.state import TrainState, abstract_state, state_shardings
from lifecycle.training.step import make_train_step


def trace_train_step(
    model: ModelConfig, train: TrainConfig, mesh: AnyMesh, others: Mapping[str, ModelConfig] | None = None
) -> jax.stages.Traced:
    """A stage's train step, gradients and optimizer, traced for the devices of `mesh`; call `.lower()` on the
    result. `others`: the models that its settings `TrainConfig.held` name."""
    state, batch = abstract_arguments(model, train, mesh)
    optimizer = build_optimizer(train.optimizer, model, train.steps, mesh)
    objective = build_objective(model, train, others)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    settings, served = (train.grad_accum, model.bias_rate, train.faults), served_by(model, train, mesh)
    step = make_train_step(objective, optimizer, mesh, shardings, *settings, served)
    return step.trace(state, batch, abstract_held(others or {}, mesh))


def abstract_held(others: Mapping[str, ModelConfig], mesh: AnyMesh) -> Params:
    """Shapes and shardings of the parameters of models that a step holds, by name."""

    def leaf(shape: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    with computing_on(mesh):
        shapes = {name: abstract_in_use(other) for name, other in others.items()}
    shardings = {name: tree_shardings(mesh, logical_axes(other)) for name, other in others.items()}
    return jax.tree.map(leaf, shapes, shardings)


def abstract_arguments(model: ModelConfig, train: TrainConfig, mesh: AnyMesh) -> tuple[TrainState, Batch]:
    """Shapes and shardings of the arguments of a step on token rows: its state and a batch."""
    optimizer = build_optimizer(train.optimizer, model, train.steps, mesh)
    shardings = state_shardings(model, optimizer, mesh, train.frozen(model))
    with computing_on(mesh):  # weights beside an adapter are held in the compute dtype of its devices
        state = abstract_state(model, optimizer, shardings, holding(train.optimizer, model))
    if train.faults.is_guarded:
        state = replace(state, faults=abstract_faults(mesh))
    return state, abstract_batch(train, mesh)


def abstract_batch(train: TrainConfig, mesh: AnyMesh) -> Batch:
    """The shapes of a batch of token rows, sharded over `mesh`."""
    shape = (train.global_batch_size, train.seq_len)

    def array(name: str) -> Any:
        dtype = jnp.float32 if name == "loss_mask" else jnp.int32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name))

    return {name: array(name) for name in TOKEN_COLUMNS}
