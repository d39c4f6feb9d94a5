"""The programs of a stage that learns from what it samples: its step, and what it runs before on the same devices.

Sampler and trainer share them, so what one leaves there counts for the other: the training state, the reference and the
reward model stay; the sampler's weights and cache, and each program's temporaries, come and go. The stage's peak is
that of its largest program with what lies beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.planning.estimate.work import scoring_work
from lifecycle.planning.programs.lowering import PlannedProgram, programs_of, train_program
from lifecycle.rl.config import RolloutConfig
from lifecycle.training.distilling import DistillationConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


def rollout_programs(
    model: ModelConfig, train: RolloutConfig, mesh: "Mesh", section: str, reward: ModelConfig | None
) -> tuple[PlannedProgram, ...]:
    """The step; what the trainer measures of the rollouts; the sampler's prefill and decode. `reward`: the model of the
    stage that scores them, if one does."""
    from lifecycle.rl import lowering
    from lifecycle.training.lowering import abstract_training_state

    row = cache(partial(lowering.example_row, train))
    kept = cache(partial(lowering.kept_arrays, model, train, mesh, reward))
    engine = lowering.abstract_sampler(model, train, mesh, train.top_k)
    state = cache(partial(abstract_training_state, model, train, mesh))
    step, runs = (
        train_program(model, train, mesh, section, row=row),
        lowering.runs_per_step(train, engine.num_slots, mesh),
    )

    def scoring(is_value: bool) -> PlannedProgram:
        return PlannedProgram(
            name=f"{step.name}-{'values' if is_value else 'logprobs'}",
            kind="scoring",
            section=section,
            mesh=mesh,
            lower=lambda: lowering.trace_measuring(model, train, mesh, state().params, is_value).lower(),
            arguments=lambda: {"parameters": state().params},
            work=scoring_work(model, train),
            beside=lambda: {"optimizer": state().opt_state, **kept()},
            runs_per_step=runs["scoring"],
        )

    def sampling(program: PlannedProgram) -> PlannedProgram:
        def beside() -> Mapping[str, PyTree]:
            of_trainer = {"the trainer's parameters": state().params, "optimizer": state().opt_state}
            return {**of_trainer, **kept(), **lowering.handed_arrays(model, train, mesh)}

        name = f"{step.name}-{program.name}"
        return replace(program, name=name, section=section, beside=beside, runs_per_step=runs[program.kind])

    measured = map(scoring, lowering.measured_of(train))
    return (replace(step, beside=kept), *measured, *map(sampling, programs_of(engine, mesh)))


def answering_programs(
    model: ModelConfig, train: DistillationConfig, mesh: "Mesh", section: str, others: Mapping[str, ModelConfig]
) -> tuple[PlannedProgram, ...]:
    """The step; the prefill and decode of the student's own answers, for a step that is on these. `others` as in
    `train_program`."""
    from lifecycle.rl import lowering
    from lifecycle.training.lowering import abstract_held, abstract_training_state

    answering = train.answering
    assert answering is not None
    engine = lowering.abstract_sampler(model, answering, mesh)
    state = cache(partial(abstract_training_state, model, train, mesh))
    step = train_program(model, train, mesh, section, others)
    runs = lowering.sampling_runs(answering, answering.prompts_per_step, engine.num_slots, mesh)

    def beside() -> Mapping[str, PyTree]:
        of_trainer = {"the trainer's parameters": state().params, "optimizer": state().opt_state}
        return {**of_trainer, **abstract_held(others, mesh), **lowering.handed_arrays(model, train, mesh)}

    def sampling(program: PlannedProgram) -> PlannedProgram:
        name, times = f"{step.name}-{program.name}", runs[program.kind] * answering.share
        return replace(program, name=name, section=section, beside=beside, runs_per_step=times)

    return (step, *map(sampling, programs_of(engine, mesh)))
