"""The web page: one file, no script, nothing loaded from elsewhere.

What must hold: texts of documents and of models stay texts, whatever mark-up is in them (autoescaping in a sandbox, and
a policy in the page that forbids scripts and requests).
"""

from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lifecycle.report.blocks import Document
from lifecycle.report.format import printable
from lifecycle.report.geometry import place_bars, place_intervals, place_lines

TEMPLATE = "report.html.jinja"


def render_html(document: Document) -> str:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["place_lines"] = place_lines
    environment.globals["place_intervals"] = place_intervals
    environment.globals["place_bars"] = place_bars
    return printable(environment.get_template(TEMPLATE).render(document=document))
