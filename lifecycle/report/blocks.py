"""The parts of a report: sections of blocks whose texts are final.

The web page and the Markdown file are two renderings of this one structure. What must hold: every number is
formatted before it gets here, so the two cannot disagree.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from lifecycle.report.format import significant

SHOWN_POINTS = 10  # per curve, in the table below its chart

# What an axis of values spans, the one rule for all charts: amounts, of which 0 is none (learning rate, gradient norm,
# throughput), start at 0; shares span 0 to 1; all else (losses, likelihoods, margins) spans its data, for those changes
# are small beside the distance from 0, which says nothing.
type Span = Literal["amount", "share", "data"]
type Point = tuple[float, float]
type Said = tuple[tuple[str, str], ...]  # texts, each with its name: who says it
type Chart = LineChart | IntervalChart | BarChart | Histogram
type Block = Paragraph | Heading | Headline | Facts | Table | Verbatim | Exchanges | Charts


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading below the section's own."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Tile:
    """A number with its name and a remark."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Headline:
    """The main numbers."""

    kind: ClassVar[str] = "headline"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of texts; columns named in `numeric` are right-aligned. A `folded` table opens on a click."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[str, ...] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)
        assert set(self.numeric) <= set(self.columns)


@dataclass(frozen=True)
class Verbatim:
    """Text whose line breaks matter."""

    kind: ClassVar[str] = "verbatim"
    caption: str
    text: str


@dataclass(frozen=True)
class Exchange:
    """A question, the model's answer and the reference."""

    question: str
    answer: str
    reference: str

    @property
    def said(self) -> Said:
        """Its texts."""
        return (("question", self.question), ("model", self.answer), ("reference", self.reference))


@dataclass(frozen=True)
class Exchanges:
    """Several exchanges, one below the other; with a caption, they open on a click."""

    kind: ClassVar[str] = "exchanges"
    items: tuple[Said, ...]
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """A named curve, in order of x; `dots` marks each point, for curves with few points. `color`: its number in a page
    that shows the same thing in several charts; None: its place in the chart. `errors`: the points' standard errors."""

    name: str
    points: tuple[Point, ...]
    dots: bool = False
    color: int | None = None
    errors: tuple[Point, ...] = ()


@dataclass(frozen=True)
class LineChart:
    """Curves over steps, or over another amount on a logarithmic axis."""

    kind: ClassVar[str] = "lines"
    title: str
    unit: str
    series: tuple[Series, ...]
    axis: Span = "data"
    over: str = "step"
    is_log: bool = False

    @property
    def description(self) -> str:
        """The chart as a sentence, for readers who cannot see it."""
        return "; ".join(_course(series, self.over) for series in self.series) + "."

    @property
    def table(self) -> Table:
        """A few of the points, first and last included."""
        steps = sorted({x for series in self.series for x, _ in thin(series.points, SHOWN_POINTS)})
        values = [dict(series.points) for series in self.series]
        rows = tuple((_position(x), *(_value(curve, x) for curve in values)) for x in steps)
        names = tuple(series.name for series in self.series)
        return Table(f"{self.title}, {self.unit}", (self.over, *names), rows, (self.over, *names))


@dataclass(frozen=True)
class Measure:
    """A value with its interval."""

    name: str
    mean: float
    low: float
    high: float
    is_baseline: bool = False


@dataclass(frozen=True)
class IntervalChart:
    """Values with their intervals, one above the other; `mark` is a value to compare with, such as chance."""

    kind: ClassVar[str] = "intervals"
    title: str
    unit: str
    measures: tuple[Measure, ...]
    mark: tuple[str, float] | None = None
    axis: Span = "data"

    @property
    def description(self) -> str:
        """The chart as a sentence, for readers who cannot see it."""
        shown = [
            f"{m.name} {significant(m.mean)} from {significant(m.low)} to {significant(m.high)}" for m in self.measures
        ]
        if self.mark is not None:
            shown.append(f"{self.mark[0]} {significant(self.mark[1])}")
        return "; ".join(shown) + "."


@dataclass(frozen=True)
class BarChart:
    """Amounts, one above the other: (name, amount, its text)."""

    kind: ClassVar[str] = "bars"
    title: str
    unit: str
    bars: tuple[tuple[str, float, str], ...]

    @property
    def description(self) -> str:
        """The chart as a sentence, for readers who cannot see it."""
        return "; ".join(f"{name} {text}" for name, _, text in self.bars) + "."


@dataclass(frozen=True)
class Histogram:
    """How many are in each bin, `edges[i] <= value < edges[i + 1]`, on a logarithmic axis. `limits`: values with a name
    at which a bin ends; bins outside `within` have another colour. `is_log`: so is the axis of the values, from 1."""

    kind: ClassVar[str] = "histogram"
    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    within: tuple[float, float]
    limits: tuple[tuple[str, float], ...] = ()
    is_log: bool = False

    def __post_init__(self) -> None:
        assert len(self.edges) == len(self.counts) + 1

    @property
    def description(self) -> str:
        """The chart as a sentence, for readers who cannot see it."""
        low, high = significant(self.edges[0]), significant(self.edges[-1])
        return "; ".join((f"{sum(self.counts):,} from {low} to {high}", *(name for name, _ in self.limits))) + "."

    @property
    def table(self) -> Table:
        """The bins that are not empty."""
        bins = zip(pairwise(self.edges), self.counts, strict=True)
        rows = tuple((significant(low), significant(high), f"{count:,}") for (low, high), count in bins if count)
        return Table(f"{self.title}, {self.unit}", ("from", "below", "count"), rows, ("from", "below", "count"))


@dataclass(frozen=True)
class Charts:
    """Drawings side by side."""

    kind: ClassVar[str] = "charts"
    items: tuple[Chart, ...]


@dataclass(frozen=True)
class ReportSection:
    """A part of the report; `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """A title, a line below it, and the sections."""

    title: str
    lead: str
    sections: tuple[ReportSection, ...]


def thin(points: tuple[Point, ...], most: int) -> tuple[Point, ...]:
    """At most this many of the points, evenly spaced, first and last included."""
    if len(points) <= most:
        return points
    return tuple(points[round(i * (len(points) - 1) / (most - 1))] for i in range(most))


def _course(series: Series, over: str) -> str:
    (first, begin), (last, end) = series.points[0], series.points[-1]
    there = f"{significant(end)} at {over} {_position(last)}"
    if len(series.points) == 1:
        return f"{series.name} {there}"
    return f"{series.name} from {significant(begin)} at {over} {_position(first)} to {there}"


def _position(x: float) -> str:
    return f"{x:,.0f}" if x < 1e9 else f"{x:.2e}"


def _value(curve: dict[float, float], x: float) -> str:
    return significant(curve[x]) if x in curve else ""
