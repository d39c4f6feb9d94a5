"""Traces the train step from shapes alone, to compile it for devices that are not present.

The columns of a batch are those of a row that the rows' own code makes: of the kind that the objective reads, of
answers of `ANSWER` tokens, whose number decides a few small arrays.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_in_use, logical_axes
from lifecycle.parallel.mesh import AnyMesh, computing_on, tree_shardings
from lifecycle.parallel.placement import batch_sharding
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DivergenceConfig
from lifecycle.training.faults import abstract_faults
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.registry import SEGMENTS, objective_kind
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.packing import Row, packed_row
from lifecycle.training.reference import OF_OTHERS, REFERENCE
from lifecycle.training.reference_copy import following
from lifecycle.training.rounding import holding
from lifecycle.training.served import served_by
from lifecycle.training.state import TrainState, abstract_state, state_shardings
from lifecycle.training.step import make_train_step
from lifecycle.training.step_rows import StepRows
from lifecycle.training.taught import blank_columns

ANSWER = 512


def trace_train_step(
    model: ModelConfig,
    train: TrainConfig,
    mesh: AnyMesh,
    others: Mapping[str, ModelConfig] | None = None,
    row: Row | None = None,
) -> jax.stages.Traced:
    """A stage's train step, gradients and optimizer, traced for the devices of `mesh`; call `.lower()` on the
    result. `others`: the models that its settings `TrainConfig.held` name; `row`: one like those of its batches; None:
    `example_row`."""
    state, batch = abstract_arguments(model, train, mesh, row)
    model = train.with_copy(model)
    optimizer = build_optimizer(train.optimizer, model, train.steps, mesh)
    objective = build_objective(model, train, others)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    settings, served = (train.grad_accum, model.bias_rate, train.faults), served_by(model, train, mesh)
    step = make_train_step(objective, optimizer, mesh, shardings, *settings, served, following(train))
    return step.trace(state, batch, abstract_held(others or {}, mesh))


def abstract_held(others: Mapping[str, ModelConfig], mesh: AnyMesh) -> Params:
    """Shapes and shardings of the parameters of models that a step holds, by name."""

    def leaf(shape: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    with computing_on(mesh):
        shapes = {name: abstract_in_use(other) for name, other in others.items()}
    shardings = {name: tree_shardings(mesh, logical_axes(other)) for name, other in others.items()}
    return jax.tree.map(leaf, shapes, shardings)


def abstract_arguments(
    model: ModelConfig, train: TrainConfig, mesh: AnyMesh, row: Row | None = None
) -> tuple[TrainState, Batch]:
    """Shapes and shardings of the arguments of a step: its state and a batch of rows like `row`."""
    batch = abstract_batch(train, mesh, example_row(train) if row is None else row)
    return abstract_training_state(model, train, mesh), batch


def abstract_training_state(model: ModelConfig, train: TrainConfig, mesh: AnyMesh) -> TrainState:
    """Shapes and shardings of a stage's state."""
    model = train.with_copy(model)
    optimizer = build_optimizer(train.optimizer, model, train.steps, mesh)
    shardings = state_shardings(model, optimizer, mesh, train.frozen(model))
    with computing_on(mesh):  # weights beside an adapter are held in the compute dtype of its devices
        state = abstract_state(model, optimizer, shardings, holding(train.optimizer, model))
    if train.faults.is_guarded:
        state = replace(state, faults=abstract_faults(mesh))
    return state


def abstract_batch(train: TrainConfig, mesh: AnyMesh, row: Row) -> Batch:
    """The shapes of a batch of rows like `row`, sharded over `mesh`."""

    def array(name: str, column: np.ndarray) -> Any:
        shape, dtype = (train.global_batch_size, *column.shape), jnp.dtype(column.dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name))

    return {name: array(name, column) for name, column in row.items()}


def example_row(train: TrainConfig) -> Row:
    """A row like those that a stage reads from files, with a reference's columns if it needs one."""
    kind = objective_kind(train.objective)
    if kind.rows == "steps":
        answer = replace(_answer(train.seq_len), labels=[1.0] * train.seq_len)
        return StepRows([answer], train.seq_len, seed=0).row(0)
    if kind.rows not in SEGMENTS:
        row = packed_row([_answer(train.seq_len)], train.seq_len)
        num = train.num_told if isinstance(train, DivergenceConfig) else None
        return row if num is None else row | blank_columns(train.seq_len, num)
    assert kind.rows != "prompts", "batches of rollouts: `rl/lowering.py`"
    size = SEGMENTS[kind.rows]
    segments = [_answer(min(ANSWER, train.seq_len // size))] * size
    values = {"label": [1.0]} if kind.rows == "labelled" else {}
    if train.needs_reference and not train.has_own_reference:
        values |= dict.fromkeys((REFERENCE, OF_OTHERS) if train.has_others else (REFERENCE,), [0.0] * size)
    group = Group(segments, values, segments if train.has_others else ())
    return GroupRows([group] * (train.seq_len // group.length), train.seq_len, seed=0).row(0)


def _answer(length: int) -> EncodedRow:
    return EncodedRow([0] * length, [False] + [True] * (length - 1))
