"""`lifecycle plan ... search=true`: which mesh, micro-batch and rematerialisation to take, and why."""

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lifecycle.cli.plan import PlanConfig, compiled_stage, planned_training, write_beside
from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Progress
from lifecycle.model.config import Remat
from lifecycle.planning.display.program import gigabytes, milliseconds, show
from lifecycle.planning.estimate.step import budget
from lifecycle.planning.programs.lowering import train_work
from lifecycle.planning.programs.plan import Planned
from lifecycle.planning.search.candidates import Candidate, known_names
from lifecycle.planning.search.reasons import Compiled, Found, Kind, Rejected, why
from lifecycle.planning.search.search import search
from lifecycle.planning.topology import Topology
from lifecycle.stages.config import RunConfig

EXAMPLES = 3  # of each kind of reason, the best first


def search_and_show(
    config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress
) -> None:
    """Compiles the best candidates, each kept as soon as it is done: a run that is stopped goes on from there."""
    done: list[Compiled] = []

    def check(candidate: Candidate) -> None:
        changed(config, candidate)

    def compile_one(candidate: Candidate) -> Planned:
        progress.note(f"compiling {candidate.name}")
        return planned_training(
            config, candidate.mesh, compiled_stage(changed(config, candidate)), own, topology, progress
        )

    try:
        found = search(topology, config.model, config.mesh, compiled_stage(config), check, compile_one, done.append)
    except KeyboardInterrupt:
        console.print(compiled_table(done))
        raise
    console.print(compiled_table(found.compiled))
    for line in (*why(found), *found.notes):
        console.print(f"- {line}", highlight=False, markup=False)
    console.print(rejected_table(found))
    if found.pick is not None:
        show_pick(config, found.pick, topology, console)
    write_beside(config, "search", topology, found.plain(), console)


def changed(config: RunConfig, candidate: Candidate) -> RunConfig:
    """The run with a candidate's mesh, and its settings in the first training stage. The others keep theirs, but for
    names that layers do not have on this mesh. Raises `ConfigError`, one line, for what no run could have."""
    mesh = candidate.mesh
    tree = {name: getattr(config, name) for name in RunConfig.model_fields} | {"mesh": mesh}
    settings = {"grad_accum": candidate.grad_accum, "remat": candidate.remat, "loss_chunks": candidate.loss_chunks}
    first, *others = config.train
    train = {first: config.train[first].model_copy(update=settings)}
    for stage in others:
        remat = known_names(config.model_of(stage), mesh, config.train[stage].remat)
        train[stage] = config.train[stage].model_copy(update={"remat": remat})
    tree["train"] = train
    try:
        return validate(RunConfig, tree)
    except ConfigError as error:
        reasons = str(error).splitlines()[1:]  # under the line that says where: there is no file here
        raise ConfigError("; ".join(line.strip().removeprefix("config: ") for line in reasons)) from None


def words(config: RunConfig, candidate: Candidate) -> list[str]:
    """What to add to the command line to have the candidate: the first stage's choices, and all else that differs."""
    new = changed(config, candidate)
    axes = [f"mesh.{axis}={size}" for axis, size in new.mesh.plain().items() if size != getattr(config.mesh, axis)]
    first, *others = config.train
    found = [*axes, f"train.{first}.grad_accum={candidate.grad_accum}", f"train.{first}.remat={_flow(candidate.remat)}"]
    if compiled_stage(new).loss_chunks != compiled_stage(config).loss_chunks:
        found.append(f"train.{first}.loss_chunks={candidate.loss_chunks}")
    for stage in others:
        remat = new.train[stage].remat or {}
        if remat != (config.train[stage].remat or {}):
            found.append(f"train.{stage}.remat={_flow(remat)}")
    return found


def _flow(remat: Remat) -> str:
    """As YAML on one line."""
    return "{" + ", ".join(f"{name}: {what}" for name, what in remat.items()) + "}"


def show_pick(config: RunConfig, pick: Compiled, topology: Topology, console: Console) -> None:
    assert pick.planned.estimate is not None
    work = train_work(config.model, compiled_stage(changed(config, pick.candidate)))
    show(pick.planned, budget(pick.planned.estimate, topology, work), console)
    settings = " ".join(shlex.quote(word) for word in words(config, pick.candidate))
    console.print(f"settings: {settings}", highlight=False, markup=False, soft_wrap=True)


def compiled_table(compiled: Sequence[Compiled]) -> Table:
    table = Table(title="compiled", title_justify="left", box=None, header_style="bold")
    for column in ("candidate", "peak", "by arithmetic", "step", "by arithmetic", "cycles"):
        table.add_column(column, justify="left" if column == "candidate" else "right", overflow="fold")
    for c in compiled:
        found = c.planned.estimate
        step, cycles = "does not fit", ""
        if c.planned.fits and found is not None:
            step, cycles = milliseconds(found.step_s), f"{found.cycles / 1e6:,.0f} M"
        memory = gigabytes(c.planned.needs_bytes), gigabytes(c.forecast.memory.total_bytes)
        table.add_row(c.candidate.name, *memory, step, milliseconds(c.forecast.step_s), cycles)
    return table


def rejected_table(found: Found) -> Table:
    """How many there are of each kind, and the best of them with what exactly was against them."""
    kinds: dict[Kind, list[Rejected]] = {}
    for rejected in found.rejected:
        kinds.setdefault(rejected.kind, []).append(rejected)
    title = f"{found.num_candidates} candidates, {len(found.compiled)} compiled; the others, by reason"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("reason", "how many", "the best of them", ""):
        table.add_column(column, justify="right" if column == "how many" else "left", overflow="fold")
    for kind, members in kinds.items():
        for place, member in enumerate(members[:EXAMPLES]):
            head = (kind, str(len(members))) if place == 0 else ("", "")
            table.add_row(*head, member.name, member.reason)
    return table
