"""`lifecycle report`: the run's report, or of a run that another process makes, what it has so far."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared, has_joined
from lifecycle.core.files import write_text
from lifecycle.core.lease import InUse

type Out = Annotated[Path, Parameter(help="The page to write of a run that another process makes.")]


@errors_are_shared()
def report(config: ConfigPath, /, *overrides: Overrides, out: Out = Path("report.html")) -> None:
    """Brings the report and its inputs up to date; while another process makes the run, only reads what it has."""
    run = read_config(config, overrides)
    try:
        make(run, ["report"], [str(config), *overrides])
    except InUse as error:
        if has_joined():
            raise
        from lifecycle.report.html import render_html  # matplotlib takes a second
        from lifecycle.stages.reported import report_so_far

        write_text(out, render_html(report_so_far(run)))
        owner = str(error).partition(";")[0]
        print(f"{owner}: this is what the run has so far")
        print(out)
