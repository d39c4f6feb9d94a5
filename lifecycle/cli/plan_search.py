"""`lifecycle plan ... search=true`: the best mesh, micro-batch and rematerialisation, and why."""

import shlex

from rich.console import Console

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Progress
from lifecycle.model.config import Remat
from lifecycle.planning.display.file import write_plan
from lifecycle.planning.display.program import show
from lifecycle.planning.display.search import compiled_table, rejected_table
from lifecycle.planning.programs.plan import ProgramPlan, plan_train_step
from lifecycle.planning.search.candidates import Candidate, known_names
from lifecycle.planning.search.reasons import CompiledCandidate, why
from lifecycle.planning.search.search import search
from lifecycle.planning.topology import Topology
from lifecycle.stages.config import RunConfig
from lifecycle.training.objectives.registry import objective_kind


def search_and_show(
    config: RunConfig, stage: str, is_tuned: bool, topology: Topology, console: Console, progress: Progress
) -> None:
    """Compiles the best candidates for a training stage and shows them. Each is cached once compiled, so a stopped
    search continues from there."""
    done: list[CompiledCandidate] = []
    model, train, section = config.trained_model(stage), config.remaining(stage), f"train.{stage}"
    if objective_kind(train.objective).rows not in ("tokens", "chat"):
        raise ConfigError(
            f"{section}: the search compares steps on token and chat rows, not of {train.objective}; leave "
            "search=true out, and plan this stage on meshes of your choice"
        )
    if train.adapter is not None:
        raise ConfigError(
            f"{section}.adapter: the search reckons with weights that are trained; plan this stage without "
            "search=true, on meshes of your choice"
        )

    if train.held:
        raise ConfigError(
            f"{section}.{train.held[0]}: the search reckons with one model, and this stage's steps run another beside "
            "it; plan this stage without search=true, on meshes of your choice"
        )

    def check(candidate: Candidate) -> None:
        changed(config, stage, candidate)

    def compile_one(candidate: Candidate) -> ProgramPlan:
        progress.note(f"compiling {candidate.name}")
        mesh, settings = candidate.mesh, candidate.applied(train)
        return plan_train_step(model, settings, mesh, topology, section, is_tuned, progress)

    try:
        result = search(topology, model, config.mesh, train, check, compile_one, done.append)
    except KeyboardInterrupt:
        console.print(compiled_table(done))
        raise
    console.print(compiled_table(result.compiled))
    for line in (*why(result, section), *result.notes):
        console.print(f"- {line}", highlight=False, markup=False)
    console.print(rejected_table(result))
    if result.pick is not None:
        show(result.pick.plan, console)
        settings = " ".join(shlex.quote(word) for word in words(config, stage, result.pick.candidate))
        console.print(f"settings: {settings}", highlight=False, markup=False, soft_wrap=True)
    path = write_plan(config.folder, "search", topology, result.plain())
    console.print(f"written: {path}", highlight=False)


def changed(config: RunConfig, stage: str, candidate: Candidate) -> RunConfig:
    """The run with a candidate's mesh, and its settings in one training stage. Other stages keep theirs, except for
    remat names that their layers do not have on this mesh. Raises a one-line `ConfigError` for an impossible run."""
    train = {}
    for name, own in config.train.items():
        if name == stage:
            train[name] = candidate.applied(own)
        else:
            remat = known_names(config.model_of(name), candidate.mesh, own.remat)
            train[name] = own.model_copy(update={"remat": remat})
    tree = {name: getattr(config, name) for name in RunConfig.model_fields} | {"mesh": candidate.mesh, "train": train}
    try:
        return validate(RunConfig, tree)
    except ConfigError as error:
        reasons = str(error).splitlines()[1:]  # the first line names a file, and there is none here
        raise ConfigError("; ".join(line.strip().removeprefix("config: ") for line in reasons)) from None


def words(config: RunConfig, stage: str, candidate: Candidate) -> list[str]:
    """The overrides that select the candidate: changed mesh axes, the stage's settings, other stages' changed remat."""
    new, section = changed(config, stage, candidate), f"train.{stage}"
    axes = [f"mesh.{axis}={size}" for axis, size in new.mesh.plain().items() if size != getattr(config.mesh, axis)]
    settings = [*axes, f"{section}.grad_accum={candidate.grad_accum}", f"{section}.remat={_flow(candidate.remat)}"]
    own = config.train[stage]
    if own.loss_chunks != candidate.loss_chunks:
        settings.append(f"{section}.loss_chunks={candidate.loss_chunks}")
    for name in (name for name in config.train if name != stage):
        remat = new.train[name].remat
        if remat is not None and remat != config.train[name].remat:
            settings.append(f"train.{name}.remat={_flow(remat)}")
    return settings


def _flow(remat: Remat) -> str:
    """A remat policy as YAML on one line."""
    return "{" + ", ".join(f"{name}: {what}" for name, what in remat.items()) + "}"
