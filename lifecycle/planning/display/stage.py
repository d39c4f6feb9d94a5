"""Displays the programs of a training stage together: what a step of it takes, and the most that the devices hold."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lifecycle.planning.display.units import gigabytes, milliseconds
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.topology import parse_topology


def stage_table(plans: Sequence[ProgramPlan]) -> Table:
    """A row for each program, and one for all: the time of a step in which every prompt and completion is as long as
    may be, and the largest peak. Programs run one after the other."""
    hbm_bytes = parse_topology(plans[0].topology).chip.hbm_bytes
    table = Table(title="a step of the stage, at most", title_justify="left", box=None, header_style="bold")
    for column in ("program", "M cycles a run", "ms a run", "runs", "seconds", "peak", "of the device"):
        table.add_column(column, justify="left" if column == "program" else "right")
    total_s = 0.0
    for plan in plans:
        memory = gigabytes(plan.needs_bytes), f"{plan.needs_bytes / hbm_bytes:.1%}"
        if plan.estimate is None:
            table.add_row(plan.program, "", "", f"{plan.runs_per_step:,.0f}", "", *memory)
            continue
        seconds = plan.runs_per_step * plan.estimate.step_s
        total_s += seconds
        times = f"{plan.estimate.cycles / 1e6:,.0f}", milliseconds(plan.estimate.step_s)
        table.add_row(plan.program, *times, f"{plan.runs_per_step:,.0f}", f"{seconds:,.1f}", *memory)
    most = max(plan.needs_bytes for plan in plans)
    fits = all(plan.fits for plan in plans)
    verdict = Text("fits", style="bold green") if fits else Text("does not fit", style="bold red")
    known_s = f"{total_s:,.1f}" if all(plan.estimate for plan in plans) else ""
    table.add_row(verdict, "", "", "", known_s, gigabytes(most), f"{most / hbm_bytes:.1%}")
    return table
