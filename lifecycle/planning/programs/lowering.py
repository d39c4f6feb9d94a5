"""The programs that a plan compiles, as they are run: a train step, and the engine's prefill and decode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lifecycle.core.typing import PyTree
from lifecycle.model.config import CacheFormat, ModelConfig, WeightFormat
from lifecycle.planning.estimate.work import Work, decode_work, prefill_work, train_work
from lifecycle.training.config import TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered, Traced

    from lifecycle.inference.lowering import AbstractEngine


STEPS_PER_WARMUP = 1000  # the run length that a train step is lowered for is this times (warmup steps + 1)


@dataclass(frozen=True)
class PlannedProgram:
    """A program to plan: how it is lowered, its arguments, and the work that the model itself needs for one run."""

    name: str  # also the name of the plan and its file
    section: str  # the section of the run's file with its settings
    is_training: bool
    mesh: "Mesh"
    lower: "Callable[[], Lowered]"
    # Abstract arrays by part: `parameters`, `optimizer`, `cache`; `embedding` is a table of which only rows are read.
    arguments: Callable[[], Mapping[str, PyTree]]
    work: Work


def train_program(
    model: ModelConfig,
    train: TrainConfig,
    mesh: "Mesh",
    section: str,
    others: Mapping[str, ModelConfig] | None = None,
) -> PlannedProgram:
    """A training stage's step; `section` is the stage's section of the run's file, `others` the models that it runs
    beside its own (`TrainConfig.held`).

    A run's length changes two constants of its learning rate schedule and nothing that a plan measures, so the step is
    lowered for a length that is independent of it: a longer run has the same plan with another budget.
    """
    schedule = train.optimizer.schedule.model_copy(update={"steps": None})
    length = STEPS_PER_WARMUP * (schedule.warmup_steps + 1)
    settings = {"steps": length, "optimizer": train.optimizer.model_copy(update={"schedule": schedule})}
    return PlannedProgram(
        name=section.rpartition(".")[2],
        section=section,
        is_training=True,
        mesh=mesh,
        lower=partial(lower_train, model, train.model_copy(update=settings), mesh, others),
        arguments=partial(_train_arguments, model, train, mesh, others or {}),
        work=train_work(model, train, tuple((others or {}).values())),
    )


def engine_programs(
    model: ModelConfig,
    num_slots: int,
    max_seq_len: int,
    mesh: "Mesh",
    weights: WeightFormat | None = None,
    kv_cache: CacheFormat | None = None,
) -> tuple[PlannedProgram, ...]:
    """The engine's prefill and decode for `num_slots` requests of up to `max_seq_len` tokens."""
    from lifecycle.inference.lowering import AbstractEngine
    from lifecycle.inference.programs import num_groups

    engine = AbstractEngine(model.trunk, num_slots, max_seq_len, mesh, weights, kv_cache)
    works = {
        "prefill": (engine.prefill, prefill_work(model, max_seq_len, num_groups(mesh))),
        "decode": (engine.decode, decode_work(model, num_slots, max_seq_len)),
    }
    arguments = partial(_engine_arguments, engine)
    return tuple(
        PlannedProgram(name, "serve", False, mesh, partial(_lowered, trace), arguments, work)
        for name, (trace, work) in works.items()
    )


def _lowered(trace: "Callable[[], Traced]") -> "Lowered":
    return trace().lower()


def _train_arguments(
    model: ModelConfig, train: TrainConfig, mesh: "Mesh", others: Mapping[str, ModelConfig]
) -> dict[str, PyTree]:
    from lifecycle.training.lowering import abstract_arguments, abstract_held

    state, _ = abstract_arguments(model, train, mesh)
    parameters = state.trained, state.frozen, abstract_held(others, mesh)
    return {"parameters": parameters, "optimizer": state.opt_state}


def _engine_arguments(engine: "AbstractEngine") -> dict[str, PyTree]:
    params, state = engine.arguments()
    if engine.config.tie_embeddings:
        return {"parameters": params, "cache": state.cache}
    read = {name: weights for name, weights in params.items() if name != "embed"}
    return {"parameters": read, "embedding": params["embed"], "cache": state.cache}


def lower_train(
    model: ModelConfig, train: TrainConfig, mesh: "Mesh", others: Mapping[str, ModelConfig] | None = None
) -> "Lowered":
    """The step of a training stage for the mesh's devices; `others` as in `train_program`."""
    from lifecycle.training.lowering import trace_train_step

    return trace_train_step(model, train, mesh, others).lower()
