"""Charts as SVG inside the page, drawn by matplotlib.

Colours are the page's custom properties and fonts are the page's own, so one drawing serves light, dark and paper. What
must hold: the same chart gives the same bytes, and a drawing refers to nothing outside itself. Importing matplotlib
takes over a second, so only code that renders a page imports this module.
"""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import blended_transform_factory
from matplotlib.typing import RcKeyType

from lifecycle.report.blocks import BarChart, Chart, Histogram, IntervalChart, LineChart, Series, Span, thin
from lifecycle.report.format import printable

# In the drawing's own pixels. The page scales a drawing to its column, 300 to 720 pixels, and its texts against that,
# from 13 to 9 pixels (`report.css`): margins have room for the largest.
WIDTH, HEIGHT = 440, 250  # of a line chart
ROW, BAR = 28, 22  # height of a row
LINE, LETTER = 14, 7.0  # height of a line and mean width of a letter, of the names on the left
NAME = 20  # letters in a line of a name
BINNED, EMPTY = 190, 0.5  # of a histogram: its height, and the count where its axis begins
DRAWN_POINTS = 400  # more than a curve of 400 pixels can show
ENDS: dict[Span, tuple[float | None, float | None]] = {"amount": (0.0, None), "share": (0.0, 1.0), "data": (None, None)}
FLAT = 1e-6  # a curve whose relative range is below this is drawn as flat
FONT_SIZE = 11

# Placeholder colours that nothing else uses; each is replaced by one of the page's custom properties.
SERIES = ("#0000a0", "#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5")
DASHES = ("-", (0, (6, 3)), (0, (6, 3)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (1, 2)))  # for those who see no colours
SOFT, RULE = "#0000a8", "#0000a9"
PROPERTIES = {color: f"var(--s{i})" for i, color in enumerate(SERIES)} | {SOFT: "var(--soft)", RULE: "var(--rule)"}
COLORS = re.compile("|".join(PROPERTIES))

STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "path.simplify": False,
    "font.family": "DejaVu Sans", "font.size": FONT_SIZE,  # comes with matplotlib, so layouts are the same everywhere
    "text.color": SOFT, "axes.labelcolor": SOFT, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "figure.frameon": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 1,
    "xtick.bottom": False, "ytick.left": False, "xtick.major.pad": 5, "ytick.major.pad": 5,
    "legend.frameon": False, "legend.borderaxespad": 0.5, "legend.handlelength": 1.6, "legend.handletextpad": 0.4,
    "legend.columnspacing": 2, "legend.borderpad": 0, "lines.solid_capstyle": "butt", "figure.dpi": 72,
}  # fmt: skip
FONT = f"font-size: {FONT_SIZE}px; font-family: 'DejaVu Sans'; "  # removed: the page's style sheet sets it
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def draw(chart: Chart, name: str) -> str:
    """The chart as an `svg` element. `name` must be unique in the page: ids start with it."""
    with _style(name):
        match chart:
            case LineChart():
                figure = _lines(chart)
            case IntervalChart():
                figure = _intervals(chart)
            case BarChart():
                figure = _bars(chart)
            case Histogram():
                figure = _histogram(chart)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=NO_METADATA)
    return _inline(file.getvalue(), name, f"{chart.title}, {chart.unit}: {chart.description}")


@contextmanager
def _style(name: str) -> Generator[None]:
    """Applies the page's style, whatever the user's own matplotlib settings."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name  # matplotlib's ids are hashes
        yield


def _lines(chart: LineChart) -> Figure:
    columns = _legend_columns(chart.series)
    lines = -(-len(chart.series) // columns)
    top = 12 + 16 * lines if len(chart.series) > 1 else 9  # one curve needs no legend
    figure, axes = _axes(WIDTH, HEIGHT + 16 * (lines - 1), left=60, right=14, top=top, bottom=38)
    points = [point for series in chart.series for point in series.points]
    ends = [end for series in chart.series for _, *ends in _spread(series) for end in ends]
    axes.set_ylim(*_limits([value for _, value in points] + ends, *ENDS[chart.axis]))
    axes.set_xlabel(chart.over, labelpad=4)
    if chart.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, numticks=6))
        _plain_ticks(axes)
    else:
        axes.set_xlim(0, max(step for step, _ in points) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for i, series in enumerate(chart.series):
        _curve(axes, series, i)
    if len(chart.series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return figure


def _legend_columns(series: Sequence[Series]) -> int:
    """As many as fit beside each other."""
    widest = 34 + LETTER * max(len(one.name) for one in series)
    return max(1, min(len(series), int((WIDTH - 60) / widest)))


def _spread(series: Series) -> list[tuple[float, float, float]]:
    """(x, value less its standard error, value plus it) of the points that have one."""
    errors = dict(series.errors)
    return [(x, value - errors[x], value + errors[x]) for x, value in series.points if x in errors]


def _curve(axes: Axes, series: Series, number: int) -> None:
    points = thin(series.points, DRAWN_POINTS)
    color = number if series.color is None else series.color
    if spread := _spread(series):
        steps, lows, highs = zip(*spread, strict=True)
        axes.fill_between(steps, lows, highs, color=SERIES[color % len(SERIES)], alpha=0.15, linewidth=0, clip_on=False)
    has_dots = series.dots or len(points) == 1
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        label=printable(series.name),
        color=SERIES[color % len(SERIES)],
        linestyle=DASHES[color % len(DASHES)],
        linewidth=1 if series.dots else 1.8,
        marker="o" if has_dots else "",
        markersize=5.5,
        clip_on=False,
        gid=f"series-{number}",
    )


def _intervals(chart: IntervalChart) -> Figure:
    names = [measure.name for measure in chart.measures]
    top = 24 if chart.mark else 8
    figure, axes = _rows(names, ROW, top=top, bottom=24, right=56)
    ends = [end for measure in chart.measures for end in (measure.low, measure.high)]
    axes.set_xlim(*_limits(ends + ([] if chart.mark is None else [chart.mark[1]]), *ENDS[chart.axis]))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for y, measure in enumerate(chart.measures):
        color = SERIES[1] if measure.is_baseline else SERIES[0]
        axes.plot([measure.low, measure.high], [y, y], color=color, linewidth=2.5, clip_on=False, gid=f"interval-{y}")
        axes.plot([measure.mean], [y], "o", color=color, markersize=7.5, clip_on=False)
        right = blended_transform_factory(axes.transAxes, axes.transData)
        axes.annotate(f"{measure.mean:.3f}", (1, y), (10, 0), right, "offset points", va="center")
    if chart.mark is not None:
        _mark(axes, *chart.mark)
    return figure


def _mark(axes: Axes, name: str, value: float, side: str = "center") -> None:
    """A value to compare with, named above."""
    axes.axvline(value, color=SOFT, linewidth=1.5, linestyle=(0, (4, 3)), clip_on=False)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    axes.text(value, 1, printable(name), transform=above, ha=side, va="bottom")


def _bars(chart: BarChart) -> Figure:
    figure, axes = _rows([name for name, _, _ in chart.bars], BAR, top=0, bottom=0, right=76)
    amounts = [amount for _, amount, _ in chart.bars]
    axes.set_xlim(0, max(amounts) or 1)
    axes.xaxis.set_visible(False)
    for y, (_, amount, text) in enumerate(chart.bars):
        axes.barh(y, amount, height=0.64, color=SERIES[0], clip_on=False, gid=f"bar-{y}")
        axes.annotate(printable(text), (amount, y), (6, 0), textcoords="offset points", va="center")
    return figure


def _histogram(chart: Histogram) -> Figure:
    figure, axes = _axes(WIDTH, BINNED, left=60, right=14, top=22, bottom=24)
    axes.set_yscale("log")
    axes.set_ylim(EMPTY, 1.3 * max(1, *chart.counts))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=5))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if chart.is_log:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        powers = [10.0**power for power in range(math.floor(math.log10(chart.edges[-1])) + 1)]
        axes.xaxis.set_major_locator(FixedLocator([0, *powers[:: 1 + len(powers) // 6]]))
    _plain_ticks(axes)
    axes.set_xlim(chart.edges[0], chart.edges[-1])
    low, high = chart.within
    for i, ((begin, end), count) in enumerate(zip(pairwise(chart.edges), chart.counts, strict=True)):
        if count:  # from `EMPTY`, since nothing is cut off at the axes
            color = SERIES[0] if low <= begin and begin <= high else SERIES[1]
            axes.bar(begin, count - EMPTY, end - begin, EMPTY, align="edge", color=color, gid=f"bin-{i}")
    for name, value in chart.limits:
        is_left = axes.transAxes.inverted().transform(axes.transData.transform((value, 1)))[0] < 0.5
        _mark(axes, name, value, "left" if is_left else "right")
    return figure


def _rows(names: Sequence[str], height: int, top: int, bottom: int, right: int) -> tuple[Figure, Axes]:
    """A chart of one row for each name, the first one on top."""
    lines = [textwrap.wrap(name, NAME) if len(name) > NAME else [name] for name in map(printable, names)]
    left = 14 + LETTER * max(len(line) for name in lines for line in name)
    height = max(height, 4 + LINE * max(map(len, lines)))
    figure, axes = _axes(WIDTH, top + height * len(names) + bottom, left=left, right=right, top=top, bottom=bottom)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.yaxis.set_visible(False)
    for y, name in enumerate(lines):
        for i, line in enumerate(name):  # a text with line breaks would not be aligned with the axis
            above = (len(name) - 1 - 2 * i) / 2 * LINE
            at, offset = blended_transform_factory(axes.transAxes, axes.transData), (-8, above)
            axes.annotate(line, (0, y), offset, at, "offset points", ha="right", va="center")
    return figure, axes


def _axes(width: float, height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """Axes inside margins, all in pixels. At 72 dots per inch, one point is one pixel of the page."""
    figure = Figure(figsize=(width / 72, height / 72))
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box, frameon=False)
    axes.set_axisbelow(True)
    _plain_ticks(axes)
    return figure, axes


def _plain_ticks(axes: Axes) -> None:
    """Labels with as many digits as are needed, without float noise, and no minor ticks."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
        axis.set_minor_locator(NullLocator())


def _limits(values: Sequence[float], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """An axis's limits: the finite values and the given ends, with a margin at each end not given; never empty."""
    values = [value for value in values if math.isfinite(value)] or [0.0]
    first = min(values) if low is None else min(low, *values)
    last = max(values) if high is None else max(high, *values)
    is_flat = last - first <= FLAT * max(abs(first), abs(last))
    margin = 0.1 * (abs(last) or 1) if is_flat else 0.04 * (last - first)
    return first - (0 if first == low else margin), last + (0 if last == high else margin)


def _inline(svg: str, name: str, label: str) -> str:
    """Turns an SVG file from matplotlib into an element of the page."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}clipPath") or child.find(f"{SVG}style") is not None:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.attrib.pop("clip-path", None)  # every point is inside the axes
        if style := element.get("style"):
            element.set("style", COLORS.sub(lambda color: PROPERTIES[color[0]], style.replace(FONT, "")))
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
        if HREF in element.attrib:
            element.set("href", f"#{name}-{element.attrib.pop(HREF).removeprefix('#')}")
    attributes = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": printable(label)}
    root.attrib.clear()
    root.attrib.update(attributes)
    return re.sub(r"\s*\n\s*", " ", ElementTree.tostring(root, encoding="unicode"))
