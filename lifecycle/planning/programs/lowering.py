"""The programs that a plan compiles, as they are run: a train step, and the engine's prefill and decode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lifecycle.core.typing import PyTree
from lifecycle.model.config import CacheFormat, ModelConfig, WeightFormat
from lifecycle.planning.estimate.work import Work, decode_work, prefill_work, train_work
from lifecycle.training.config import TrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered, Traced

    from lifecycle.inference.lowering import AbstractEngine
    from lifecycle.training.packing import Row

type Kind = Literal["step", "scoring", "prefill", "decode"]

STEPS_PER_WARMUP = 1000  # the run length that a train step is lowered for is this times (warmup steps + 1)


@dataclass(frozen=True)
class PlannedProgram:
    """A program to plan: how it is lowered, its arguments, and the work that the model itself needs for one run."""

    name: str  # also the name of the plan and its file
    kind: Kind  # a train step; a forward pass over its batch; the engine's programs
    section: str  # the section of the run's file with its settings
    mesh: "Mesh"
    lower: "Callable[[], Lowered]"
    # Abstract arrays by part: `parameters`, `optimizer`, `cache`; `embedding` is a table of which only rows are read.
    arguments: Callable[[], Mapping[str, PyTree]]
    work: Work
    beside: Callable[[], Mapping[str, PyTree]] = dict  # abstract arrays that lie on the devices while it runs
    runs_per_step: float = 1.0  # of the training stage, at most


def train_program(
    model: ModelConfig,
    train: TrainConfig,
    mesh: "Mesh",
    section: str,
    others: Mapping[str, ModelConfig] | None = None,
    row: "Callable[[], Row] | None" = None,
) -> PlannedProgram:
    """A training stage's step; `section` is the stage's section of the run's file, `others` the models that it runs
    beside its own (`TrainConfig.held`), and `row` makes one like those of its batches, if these are not read from
    files.

    A run's length changes two constants of its learning rate schedule and nothing that a plan measures, so the step is
    lowered for a length that is independent of it: a longer run has the same plan with another budget.
    """
    schedule = train.optimizer.schedule.model_copy(update={"steps": None})
    length = STEPS_PER_WARMUP * (schedule.warmup_steps + 1)
    settings = {"steps": length, "optimizer": train.optimizer.model_copy(update={"schedule": schedule})}
    return PlannedProgram(
        name=section.rpartition(".")[2],
        kind="step",
        section=section,
        mesh=mesh,
        lower=partial(lower_train, model, train.model_copy(update=settings), mesh, others, row),
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

    return programs_of(AbstractEngine(model.trunk, num_slots, max_seq_len, mesh, weights, kv_cache), mesh)


def programs_of(engine: "AbstractEngine", mesh: "Mesh") -> tuple[PlannedProgram, ...]:
    """An engine's prefill and decode."""
    from lifecycle.inference.state import num_groups

    works: dict[Kind, Any] = {
        "prefill": (engine.prefill, prefill_work(engine.config, engine.length, num_groups(mesh))),
        "decode": (engine.decode, decode_work(engine.config, engine.num_slots, engine.length)),
    }
    arguments = partial(_engine_arguments, engine)
    return tuple(
        PlannedProgram(kind, kind, "serve", mesh, partial(_lowered, trace), arguments, work)
        for kind, (trace, work) in works.items()
    )


def _lowered(trace: "Callable[[], Traced]") -> "Lowered":
    return trace().lower()


def _train_arguments(
    model: ModelConfig, train: TrainConfig, mesh: "Mesh", others: Mapping[str, ModelConfig]
) -> dict[str, PyTree]:
    from lifecycle.training.lowering import abstract_held, abstract_training_state

    state = abstract_training_state(model, train, mesh)
    parameters = state.trained, state.frozen, abstract_held(others, mesh)
    return {"parameters": parameters, "optimizer": state.opt_state}


def _engine_arguments(engine: "AbstractEngine") -> dict[str, PyTree]:
    params, state = engine.arguments()
    if engine.config.tie_embeddings:
        return {"parameters": params, "cache": state.cache}
    read = {name: weights for name, weights in params.items() if name != "embed"}
    return {"parameters": read, "embedding": params["embed"], "cache": state.cache}


def lower_train(
    model: ModelConfig,
    train: TrainConfig,
    mesh: "Mesh",
    others: Mapping[str, ModelConfig] | None = None,
    row: "Callable[[], Row] | None" = None,
) -> "Lowered":
    """The step of a training stage for the mesh's devices; `others` and `row` as in `train_program`."""
    from lifecycle.training.lowering import trace_train_step

    return trace_train_step(model, train, mesh, others, None if row is None else row()).lower()
