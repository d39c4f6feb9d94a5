"""The web page: one file, no script, nothing loaded from elsewhere.

What must hold: text from documents and models is shown as text, whatever mark-up it contains. The template escapes it
in a sandbox, and a policy in the page forbids scripts and requests.
"""

from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from lifecycle.report.blocks import Chart, Report
from lifecycle.report.charts import draw
from lifecycle.report.format import printable

TEMPLATE = "report.html.jinja"


def render_html(report: Report) -> str:
    """The page, including its style sheet and its drawings."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE, globals={"svg": _Drawings()})
    return printable(template.render(report=report))


class _Drawings:
    """Draws a page's charts, each under its own name."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, chart: Chart) -> Markup:
        self._count += 1
        return Markup(draw(chart, f"chart-{self._count}"))  # matplotlib has escaped the texts in it
