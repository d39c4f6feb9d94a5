"""`lifecycle compare`: the curves of several runs in one page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import run_folder
from lifecycle.core.files import write_text
from lifecycle.report.comparison import build_comparison, read_runs

type RunPaths = Annotated[Path, Parameter(help="Folders of runs, for example runs/quickstart, or their YAML files.")]
type Out = Annotated[Path, Parameter(help="The page to write.")]


def compare(*runs: RunPaths, out: Out = Path("comparison.html")) -> None:
    """Writes one page with a curve for each run in each chart, and the settings that differ; runs may still go on."""
    report = build_comparison(read_runs([run_folder(run, ()) for run in runs]))
    from lifecycle.report.html import render_html  # matplotlib takes a second

    write_text(out, render_html(report))
    print(out)
