"""The report as Markdown, for terminals, diffs and code hosts.

What must hold: text from a document or a model cannot become mark-up, end its table cell or leave its fence.
"""

import re
from collections.abc import Sequence
from itertools import chain

from lifecycle.report.blocks import (
    BarChart,
    Block,
    Chart,
    Charts,
    Exchanges,
    Facts,
    Heading,
    Headline,
    Histogram,
    LineChart,
    Paragraph,
    Report,
    Said,
    Table,
    Verbatim,
)
from lifecycle.report.format import interval, printable

# May begin mark-up inside a line. An underscore between letters cannot, a bracket only before "(", "[" or ":".
MARKUP = re.compile(r"[\\`*|<~]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=#|\w+;)")


def render_markdown(report: Report) -> str:
    """The report as Markdown; charts become tables of their numbers, except bar charts, which are left out."""
    lines = [f"# {plain(report.title)}", "", plain(report.lead), ""]
    for section in report.sections:
        lines += [f"## {plain(section.title)}", "", *chain.from_iterable(_block(block) for block in section.blocks)]
    return printable("\n".join(lines).rstrip("\n") + "\n")


def plain(text: str) -> str:
    """The text on one line, escaped so that Markdown shows it unchanged."""
    return MARKUP.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def _block(block: Block) -> list[str]:
    match block:
        case Paragraph():
            return [plain(block.text), ""]
        case Heading():
            return [f"### {plain(block.text)}", ""]
        case Headline():
            rows = [(tile.name, tile.value, tile.remark) for tile in block.tiles]
            return _table(("what", "value", "remark"), rows, ("value",))
        case Facts():
            return [*(f"- {plain(name)}: {plain(value)}" for name, value in block.items), ""]
        case Table():
            return [f"{plain(block.caption)}:", "", *_table(block.columns, block.rows, block.numeric)]
        case Verbatim():
            return [f"{plain(block.caption)}:", "", *_fence(block.text)]
        case Exchanges():
            caption = [f"{plain(block.caption)}:", ""] if block.caption else []
            return caption + list(chain.from_iterable(_exchange(said) for said in block.items))
        case Charts():
            return list(chain.from_iterable(_chart(chart) for chart in block.items))


def _exchange(said: Said) -> list[str]:
    return [*chain.from_iterable((f"{plain(name)}:", "", *_fence(text)) for name, text in said), "---", ""]


def _chart(chart: Chart) -> list[str]:
    """The chart's numbers as a table; nothing for bars, whose numbers are in a table of their own."""
    if isinstance(chart, LineChart | Histogram):
        return _block(chart.table)
    if isinstance(chart, BarChart):
        return []
    rows = [(m.name, interval(m.mean, m.low, m.high)) for m in chart.measures]
    rows += [] if chart.mark is None else [(chart.mark[0], f"{chart.mark[1]:.3f}")]
    return [f"{plain(chart.title)}:", "", *_table(("what", chart.unit), rows, (chart.unit,))]


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], numeric: tuple[str, ...]) -> list[str]:
    rule = ["---:" if column in numeric else "---" for column in columns]
    cells = [[plain(column) for column in columns], rule, *([plain(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _fence(text: str) -> list[str]:
    """The text in a fence that is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.splitlines(), fence, ""]
