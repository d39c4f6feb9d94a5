"""`lifecycle compare`: the curves of several runs in one page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import logs_folder
from lifecycle.core.files import write_text
from lifecycle.report.comparison import build_comparison, read_runs

type RunPlaces = Annotated[
    str, Parameter(help="Folders of runs, for example runs/quickstart, their addresses, or their YAML files.")
]
type Out = Annotated[Path, Parameter(help="The page to write.")]


def compare(*runs: RunPlaces, out: Out = Path("comparison.html")) -> None:
    """Writes one page with a curve for each run in each chart, and the settings that differ; runs may still go on."""
    report = build_comparison(read_runs([logs_folder(run, ()) for run in runs]))
    from lifecycle.report.html import render_html  # matplotlib takes a second

    write_text(out, render_html(report))
    print(out)
