"""`lifecycle profile`: the operations that took the most time in the traced steps."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from lifecycle.cli.arguments import Overrides, run_folder
from lifecycle.cli.terminal import terminal
from lifecycle.report.format import count, share
from lifecycle.report.operations import operations, trace_files

type RunPath = Annotated[Path, Parameter(help="A run's or a stage's folder, or the run's YAML file.")]
type Top = Annotated[int, Parameter(help="How many operations.")]


def profile(run: RunPath, /, *overrides: Overrides, top: Top = 20) -> None:
    """Prints the operations of the newest trace: each one's own time, its share, and how often it ran."""
    files = trace_files(run_folder(run, overrides))
    found = operations(files)
    total = sum(operation.seconds for operation in found)
    if not total:
        raise ValueError(f"{files[0]}: no operation of a device in it; trace a whole step: profile=FIRST-LAST")
    table = Table(box=None, header_style="bold")
    table.add_column("operation", overflow="fold")
    for column in ("ms", "share", "count"):
        table.add_column(column, justify="right", no_wrap=True)
    for operation in found[:top]:
        table.add_row(
            operation.name, f"{1000 * operation.seconds:.3f}", share(operation.seconds / total), count(operation.count)
        )
    console = terminal()
    console.print(table)
    console.print(
        f"{count(len(found))} operations, {total:.3f} s in all; open in XProf: {files[0].parent}", markup=False
    )
