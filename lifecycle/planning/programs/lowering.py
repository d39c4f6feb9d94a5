"""The programs that a plan compiles, as they are run: a train step, and the engine's prefill and decode."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lifecycle.model.config import ModelConfig
from lifecycle.planning.estimate.budget import InferenceBudget, TrainingBudget, inference_budget, training_budget
from lifecycle.planning.estimate.step import StepEstimate
from lifecycle.planning.estimate.work import Work, decode_work, prefill_work, train_work
from lifecycle.planning.topology import Topology
from lifecycle.training.config import CrossEntropyConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered


STEPS_PER_WARMUP = 1000  # of the length that a train step is lowered for


@dataclass(frozen=True)
class PlannedProgram:
    """A program to be planned: how it is lowered, and what the model itself needs for one run of it."""

    name: str  # what the plan and its file are called
    section: str  # of the run's file: where its settings are
    mesh: "Mesh"
    lower: "Callable[[], Lowered]"
    work: Work
    budget: Callable[[StepEstimate, Topology, Work], TrainingBudget | InferenceBudget]


def train_program(model: ModelConfig, train: CrossEntropyConfig, mesh: "Mesh", section: str) -> PlannedProgram:
    """A training stage's step; `section` is the stage's in the run's file.

    A run's length changes two constants of its learning rate schedule and nothing that a plan measures, so the step is
    lowered for a length of its own: a longer run is the same plan with another budget.
    """
    length = STEPS_PER_WARMUP * (train.optimizer.schedule.warmup_steps + 1)
    lower = partial(lower_train, model, train.model_copy(update={"steps": length}), mesh)
    return PlannedProgram(section.rpartition(".")[2], section, mesh, lower, train_work(model, train), training_budget)


def engine_programs(model: ModelConfig, num_slots: int, max_seq_len: int, mesh: "Mesh") -> tuple[PlannedProgram, ...]:
    """The engine's prefill and decode for `num_slots` requests of up to `max_seq_len` tokens."""
    sizes = model, num_slots, max_seq_len, mesh
    prefill, decode = prefill_work(model, max_seq_len), decode_work(model, num_slots, max_seq_len)
    return (
        PlannedProgram("prefill", "serve", mesh, partial(lower_prefill, *sizes), prefill, inference_budget),
        PlannedProgram("decode", "serve", mesh, partial(lower_decode, *sizes), decode, inference_budget),
    )


def lower_train(model: ModelConfig, train: CrossEntropyConfig, mesh: "Mesh") -> "Lowered":
    """The step of a training stage for the mesh's devices."""
    from lifecycle.training.lowering import trace_train_step

    return trace_train_step(model, train, mesh).lower()


def lower_decode(model: ModelConfig, num_slots: int, max_seq_len: int, mesh: "Mesh") -> "Lowered":
    """The engine's decode dispatch over all slots. Its loop over steps has no fixed length: it counts as one step."""
    from lifecycle.inference.lowering import trace_decode

    return trace_decode(model, num_slots, max_seq_len, mesh).lower()


def lower_prefill(model: ModelConfig, num_slots: int, max_seq_len: int, mesh: "Mesh") -> "Lowered":
    """The engine's prefill of its longest chunk, one for each group of slots."""
    from lifecycle.inference.lowering import trace_prefill

    return trace_prefill(model, num_slots, max_seq_len, mesh).lower()
