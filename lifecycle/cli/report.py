"""`lifecycle report`: the run's report, or of a run that another process makes, what it has so far."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.make import make
from lifecycle.core.distributed import errors_are_shared, has_joined
from lifecycle.core.files import write_text
from lifecycle.core.lease import InUse
from lifecycle.stages.config import RunConfig

PAGE = "report.html"  # in the report's artifact

type Out = Annotated[
    Path | None,
    Parameter(help="A file for the page; of a run that another process makes it is NAME-so-far.html by default."),
]


@errors_are_shared()
def report(config: ConfigPath, /, *overrides: Overrides, out: Out = None) -> None:
    """Brings the report and its inputs up to date; while another process makes the run, only reads what it has. A run
    whose owner has not given it up is never taken over."""
    run = read_config(config, overrides)
    try:
        made = make(run, ["report"], [str(config), *overrides], takes_over=False)
    except InUse as error:
        if has_joined():
            raise
        page = _page_so_far(run)
        print(f"{error.owner}: this is what the run has so far")
        _write(out or Path(f"{run.name}-so-far.html"), page)
    else:
        if out is not None and made:
            _write(out, (made["report"].path / PAGE).read_text(encoding="utf-8"))


def _page_so_far(run: RunConfig) -> str:
    from lifecycle.report.html import render_html  # matplotlib takes a second
    from lifecycle.stages.reported import report_so_far

    return render_html(report_so_far(run))


def _write(out: Path, page: str) -> None:
    write_text(out, page)
    print(out)
