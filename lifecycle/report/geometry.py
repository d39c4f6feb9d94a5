"""Where a chart's lines, dots and labels go, in the units of its view box; the page's template writes them as SVG.

Drawn here and not by a plotting library: the page's style sheet then colours the charts for light, dark and paper, a
chart has a few kilobytes, and nothing is imported (matplotlib takes 0.9 CPU seconds, more where it has to index fonts
at first).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.report.blocks import BarChart, IntervalChart, LineChart, Point, thin

WIDTH, HEIGHT = 360.0, 224.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 28.0, 38.0  # around the axes: labels, legend
ROW, LABELS = 28.0, 168.0  # of an interval chart: height of a row, width of the names
BAR, BAR_LABELS = 22.0, 112.0  # of a bar chart
LETTER = 6.0  # mean width of a letter at the page's 11 units, for the legend
DRAWN_POINTS = 400  # more than a curve of 300 units can show


FLAT = 1e-6  # a curve that varies by less than this share of itself is drawn as a level one


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """`path`: the points as SVG writes them; `legend`: where its name is written."""

    name: str
    path: str
    dots: tuple[Point, ...]
    legend: float


@dataclass(frozen=True)
class Lines:
    """A line chart; the box of its axes is `left, top, right, bottom`."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Whisker:
    """A value with its interval, at height `y`."""

    name: str
    value: str
    y: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """An amount from `left` to `right`, at height `y`."""

    name: str
    text: str
    y: float
    right: float


@dataclass(frozen=True)
class Bars:
    width: float
    height: float
    left: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Intervals:
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    ticks: tuple[Tick, ...]
    whiskers: tuple[Whisker, ...]
    mark: Tick | None


@dataclass(frozen=True)
class Scale:
    """A linear map from values to places."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin), 2)

    def ticks(self, most: int) -> tuple[Tick, ...]:
        step = nice_step(self.high - self.low, most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(Tick(self(i * step), tick_label(i * step, step)) for i in range(first, last + 1))


def place_lines(chart: LineChart) -> Lines:
    points = [point for series in chart.series for point in series.points]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    top = TOP if len(chart.series) > 1 else TOP / 3  # one curve needs no legend
    x = Scale(0, max(step for step, _ in points), LEFT, right)
    y = Scale(*_range([value for _, value in points], chart.from_zero), bottom, top)
    curves, legend = [], LEFT
    for series in chart.series:
        placed = tuple((x(step), y(value)) for step, value in thin(series.points, DRAWN_POINTS))
        path = " ".join(f"{a:g},{b:g}" for a, b in placed)
        curves.append(Curve(series.name, path, placed if series.dots or len(placed) == 1 else (), legend))
        legend += 34 + LETTER * len(series.name)
    return Lines(WIDTH, HEIGHT, LEFT, top, right, bottom, x.ticks(5), y.ticks(5), tuple(curves))


def place_intervals(chart: IntervalChart) -> Intervals:
    ends = [end for m in chart.measures for end in (m.low, m.high)]
    low, high = _range(ends + ([] if chart.mark is None else [chart.mark[1]]))
    right, bottom = WIDTH - 48, TOP + ROW * len(chart.measures)
    x = Scale(low, high, LABELS, right)
    whiskers = tuple(
        Whisker(m.name, f"{m.mean:.3f}", TOP + ROW * (i + 0.5), x(m.mean), x(m.low), x(m.high))
        for i, m in enumerate(chart.measures)
    )
    mark = None if chart.mark is None else Tick(x(chart.mark[1]), chart.mark[0])
    return Intervals(WIDTH, bottom + 26, LABELS, right, TOP, bottom, x.ticks(4), whiskers, mark)


def place_bars(chart: BarChart) -> Bars:
    most = max(amount for _, amount, _ in chart.bars)
    x = Scale(0, most or 1, BAR_LABELS, WIDTH - 58)
    bars = tuple(Bar(name, text, BAR * (i + 0.5), x(amount)) for i, (name, amount, text) in enumerate(chart.bars))
    return Bars(WIDTH, BAR * len(bars), BAR_LABELS, bars)


def nice_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that needs at most `most` steps for `span`."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power * most >= span * (1 - 1e-9))


def tick_label(value: float, step: float) -> str:
    """The value with as many decimals as its neighbours need."""
    if value == 0:
        return "0"
    if step < 1e-3:
        digits = max(1, math.floor(math.log10(abs(value) / step)) + 1)
        return f"{value:.{digits}e}".replace("e-0", "e-")
    if step >= 1000:
        return f"{value / 1000:g}k"
    decimals = next(d for d in range(8) if abs(round(step, d) - step) < step * 1e-6)
    return f"{value:,.{decimals}f}"


def _range(values: Sequence[float], from_zero: bool = False) -> tuple[float, float]:
    """The span of an axis: of the values, from zero where asked or where that costs little, never empty."""
    low, high = min(values), max(values)
    if 0 <= low <= high / 2 or (from_zero and low > 0):
        low = 0.0
    if high - low <= FLAT * max(abs(low), abs(high)):
        return low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    margin = 0.04 * (high - low)
    return (low if low == 0 else low - margin), high + margin
