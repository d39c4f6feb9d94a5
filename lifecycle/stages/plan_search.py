"""`lifecycle plan ... search=true`: which mesh, micro-batch and rematerialisation to take, and why."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lifecycle.core.progress import Progress
from lifecycle.planning.display import gigabytes, milliseconds, show
from lifecycle.planning.estimate import budget
from lifecycle.planning.layout import POLICIES, Candidate
from lifecycle.planning.lowering import train_work
from lifecycle.planning.plan import Planned
from lifecycle.planning.search import Compiled, Found, Rejected, search, why
from lifecycle.planning.topology import Topology
from lifecycle.stages.config import RunConfig
from lifecycle.stages.plan import PlanConfig, planned_training, write_beside
from lifecycle.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN_REASONS = 12


def search_and_show(
    config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress
) -> None:
    """Compiles the best candidates, each kept as soon as it is done: a run that is stopped goes on from there."""
    done: list[Compiled] = []

    def compile_one(candidate: Candidate) -> Planned:
        progress.note(f"compiling {candidate.name}")
        train = trained_by(config.pretrain, candidate)
        return planned_training(config, candidate.mesh, train, own, topology, progress)

    try:
        found = search(topology, config.model, config.pretrain, compile_one, done.append)
    except KeyboardInterrupt:
        console.print(compiled_table(done))
        raise
    console.print(compiled_table(found.compiled))
    for line in why(found):
        console.print(f"- {line}", highlight=False)
    console.print(rejected_table(found))
    if found.pick is not None:
        show_pick(config, found.pick, topology, console)
    write_beside(config, "search", topology, found.plain(), console)


def trained_by(train: TrainConfig, candidate: Candidate) -> Any:
    """The run's training settings with a candidate's micro-batch and policy."""
    return train.model_copy(update={"grad_accum": candidate.grad_accum, "remat": POLICIES[candidate.policy]})


def show_pick(config: RunConfig, pick: Compiled, topology: Topology, console: Console) -> None:
    assert pick.planned.estimate is not None
    work = train_work(config.model, trained_by(config.pretrain, pick.candidate))
    show(pick.planned, budget(pick.planned.estimate, topology, work), console)
    settings = [f"mesh.{axis}={size}" for axis, size in pick.candidate.mesh.plain().items() if size > 1]
    settings.append(f"pretrain.grad_accum={pick.candidate.grad_accum}")
    remat = ", ".join(f"{name}: {what}" for name, what in POLICIES[pick.candidate.policy].items())
    console.print(f"settings: {' '.join(settings)} 'pretrain.remat={{{remat}}}'", highlight=False, soft_wrap=True)


def compiled_table(compiled: "Sequence[Compiled]") -> Table:
    table = Table(title="compiled", title_justify="left", box=None, header_style="bold")
    for column in ("candidate", "peak", "by arithmetic", "step", "by arithmetic", "cycles"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for c in compiled:
        found = c.planned.estimate
        step, cycles = "does not fit", ""
        if c.planned.fits and found is not None:
            step, cycles = milliseconds(found.step_s), f"{found.cycles / 1e6:,.0f} M"
        memory = gigabytes(c.planned.needs_bytes), gigabytes(c.forecast.memory_bytes)
        table.add_row(c.candidate.name, *memory, step, milliseconds(c.forecast.step_s), cycles)
    return table


def rejected_table(found: Found) -> Table:
    """The first of each kind of reason, and how many there are."""
    kinds: dict[str, list[Rejected]] = {}
    for rejected in found.rejected:
        kinds.setdefault(" ".join(rejected.reason.split()[:2]), []).append(rejected)
    title = f"{found.num_candidates} candidates, {len(found.compiled)} compiled; rejected, by reason"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("how many", "for example", "reason"):
        table.add_column(column, overflow="fold")
    for members in list(kinds.values())[:SHOWN_REASONS]:
        table.add_row(str(len(members)), members[0].name, members[0].reason)
    return table
