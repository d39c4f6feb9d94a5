"""Charts: ticks a reader can use, points inside the axes; numbers as texts; Markdown that shows any text as it is."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lifecycle.report import format
from lifecycle.report.blocks import BarChart, IntervalChart, LineChart, Measure, Series, thin
from lifecycle.report.geometry import FLAT, Scale, nice_step, place_bars, place_intervals, place_lines
from lifecycle.report.markdown import plain

unhurried = settings(deadline=None)  # the machine may be busy with other things
values = st.floats(-1e6, 1e6).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
curves = st.lists(values, min_size=1, max_size=30).map(lambda ys: tuple((10.0 * (i + 1), y) for i, y in enumerate(ys)))


@unhurried
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e7), st.integers(3, 8))
def test_ticks_lie_on_the_axis_and_differ(low: float, span: float, most: int) -> None:
    span = max(span, FLAT * abs(low))
    scale = Scale(low, low + span, 0, 300)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1
    assert all(-0.01 <= tick.at <= 300.01 for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)


@unhurried
@given(st.floats(1e-9, 1e9), st.integers(1, 10))
def test_steps_are_nice_and_few(span: float, most: int) -> None:
    step = nice_step(span, most)
    assert span / step <= most * (1 + 1e-6)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5)) < 1e-6


@unhurried
@given(curves, curves, st.booleans())
def test_every_point_is_inside_the_axes(one: tuple, two: tuple, from_zero: bool) -> None:
    chart = LineChart("t", "u", (Series("a", one), Series("b", two, dots=True)), from_zero)
    plot = place_lines(chart)
    for curve in plot.curves:
        for pair in curve.path.split():
            x, y = map(float, pair.split(","))
            assert plot.left <= x <= plot.right and plot.top - 0.01 <= y <= plot.bottom + 0.01
    assert len(plot.curves[1].dots) == len(two)


def test_a_higher_value_is_drawn_higher() -> None:
    plot = place_lines(LineChart("t", "u", (Series("a", ((10, 1.0), (20, 3.0), (30, 2.0))),)))
    heights = [float(pair.split(",")[1]) for pair in plot.curves[0].path.split()]
    assert heights[1] < heights[2] < heights[0]


def test_amounts_start_at_zero_where_asked() -> None:
    series = (Series("a", ((10, 90.0), (20, 100.0))),)
    lowest = [place_lines(LineChart("t", "u", series, asked)).y_ticks[0].label for asked in (False, True)]
    assert lowest == ["90.0", "0"]


def test_intervals_and_bars_keep_their_proportions() -> None:
    chart = IntervalChart("t", "u", (Measure("a", 0.5, 0.4, 0.6), Measure("b", 0.1, 0.0, 0.2)), ("chance", 0.25))
    plot = place_intervals(chart)
    a, b = plot.whiskers
    assert a.low < a.mean < a.high and b.high < a.low
    assert plot.mark is not None and b.high < plot.mark.at < a.low
    assert chart.description == "a 0.5000 from 0.4000 to 0.6000; b 0.1000 from 0 to 0.2000; chance 0.2500."
    bars = place_bars(BarChart("t", "u", (("x", 10, "10"), ("y", 5, "5"), ("z", 0, "0"))))
    lengths = [bar.right - bars.left for bar in bars.bars]
    assert lengths[1] == pytest.approx(lengths[0] / 2) and lengths[2] == 0


@unhurried
@given(curves, st.integers(2, 12))
def test_thinning_keeps_the_ends(points: tuple, most: int) -> None:
    kept = thin(points, most)
    assert len(kept) == min(len(points), most)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert list(kept) == sorted(set(kept))


def test_a_curve_in_words_and_numbers() -> None:
    loss, held = Series("training", ((10, 5.0), (20, 4.0))), Series("held out", ((20, 4.5),), dots=True)
    chart = LineChart("Loss", "nats", (loss, held))
    assert chart.description == "training from 5.000 at step 10 to 4.000 at step 20; held out 4.500 at step 20."
    assert chart.table.rows == (("10", "5.000", ""), ("20", "4.000", "4.500"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (format.count(1312384), "1,312,384"),
        (format.significant(0), "0"),
        (format.significant(3.68554), "3.686"),
        (format.significant(-0.0123456), "-0.01235"),
        (format.significant(245871.2), "245,871"),
        (format.significant(3e-7), "3.000e-07"),
        (format.size(999), "999 bytes"),
        (format.size(999_600), "1.00 MB"),
        (format.size(9_098_676), "9.10 MB"),
        (format.flops(2.4487e11), "245 GFLOP"),
        (format.share(0.3605), "36.0 %"),
        (format.duration(59.94), "59.9 s"),
        (format.duration(92), "1 min 32 s"),
        (format.duration(7260), "2 h 1 min"),
        (format.money(0.00133, "USD"), "0.001330 USD"),
        (format.money(1234.5, "EUR"), "1,234.50 EUR"),
        (format.moment("2026-01-02T03:04:05+00:00"), "2026-01-02 03:04:05"),
        (format.interval(0.5, 0.25, 0.75), "0.500 [0.250, 0.750]"),
        (format.difference(0.5, -0.25, 0.75), "+0.500 [-0.250, +0.750]"),
        (format.difference(-0.0001, -0.25, 0.75), "+0.000 [-0.250, +0.750]"),
        (format.counts({"a": 1200, "b": 3}), "a 1,200, b 3"),
        (format.printable("a\x00\ud800b\n"), "a\ufffd\ufffdb\n"),
    ],
)
def test_numbers_as_texts(found: str, expected: str) -> None:
    assert found == expected


@unhurried
@given(st.text(st.one_of(st.sampled_from("\\`*_[]()<>!|~#&;:/ \nab"), st.characters(codec="utf-8")), max_size=40))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    cell = format.printable(plain(text))
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| a | b |\n|---|---|\n| {cell} | end |\n")
    )
    inlines = [token for token in tokens if token.type == "inline"]
    shown = ["".join(child.content for child in token.children or ()) for token in inlines]
    assert {child.type for token in inlines for child in token.children or ()} <= {"text", "text_special"}
    assert shown == ["a", "b", format.printable(" ".join(text.split())), "end"]
