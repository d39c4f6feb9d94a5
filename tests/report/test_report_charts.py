"""Charts with every point in its position, numbers as texts, Markdown that shows any text as it is."""

import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lifecycle.report import format
from lifecycle.report.blocks import BarChart, Chart, Histogram, IntervalChart, LineChart, Measure, Series, Span, thin
from lifecycle.report.charts import ENDS, FLAT, NAME, draw
from lifecycle.report.markdown import plain

values = st.floats(-1e6, 1e6).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
curves = st.lists(values, min_size=1, max_size=30).map(lambda ys: tuple((10.0 * (i + 1), y) for i, y in enumerate(ys)))


def svg(chart: Chart, name: str = "c") -> ElementTree.Element:
    return ElementTree.fromstring(draw(chart, name))


def group(root: ElementTree.Element, gid: str) -> ElementTree.Element:
    (element,) = [element for element in root.iter("g") if element.get("id") == f"c-{gid}"]
    return element


def path(root: ElementTree.Element, gid: str) -> list[tuple[float, float]]:
    """The corners of what is drawn under an id, in the units of the view box."""
    shape = group(root, gid).find("path")
    assert shape is not None
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", shape.get("d", ""))]


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


def labels(root: ElementTree.Element, axis: int) -> dict[str, float]:
    """An axis's tick labels, and where they are on it."""
    (ticks,) = [element for element in root.iter("g") if element.get("id") == f"c-matplotlib.axis_{axis}"]
    along = "x" if axis == 1 else "y"
    return {text.text or "": float(text.get(along, "nan")) for text in ticks.iter("text") if text.text != "step"}


@settings(max_examples=40)
@given(curves, curves, st.sampled_from(list(ENDS)))
def test_a_line_chart_has_the_points_of_its_series(one: tuple, two: tuple, axis: Span) -> None:
    chart = LineChart("t", "u", (Series("a", one), Series("b", two, dots=True)), axis)
    root = svg(chart)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    drawn = [path(root, "series-0"), path(root, "series-1")]
    assert [len(points) for points in drawn] == [len(one), len(two)]
    assert len(list(group(root, "series-1").iter("use"))) == len(two)
    given_points, placed = [*one, *two], [*drawn[0], *drawn[1]]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in placed)
    for dim, sign in ((0, 1), (1, -1)):  # one linear scale for both series, larger values to the right and upwards
        values, places = [p[dim] for p in given_points], [sign * p[dim] for p in placed]
        span = max(values) - min(values)
        if span > FLAT * max(map(abs, values)):
            scale = (max(places) - min(places)) / span
            expected = [min(places) + scale * (value - min(values)) for value in values]
            assert places == pytest.approx(expected, abs=0.01)


bins = st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 10**9)), min_size=1, max_size=30)


@settings(max_examples=40)
@given(bins, st.booleans(), st.data())
def test_a_histogram_has_a_bar_for_each_bin_that_is_not_empty(
    drawn: list[tuple[float, int]], is_log: bool, data: st.DataObject
) -> None:
    edges = [0.0]
    for width, _ in drawn:
        edges.append(edges[-1] + width)
    limit = data.draw(st.sampled_from(edges))
    counts = tuple(count for _, count in drawn)
    chart = Histogram("t", "u", tuple(edges), counts, (limit, math.inf), ((f"≥ {limit:g}", limit),), is_log)
    root = svg(chart)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    bars = {i: path(root, f"bin-{i}") for i, count in enumerate(counts) if count}
    assert len([g for g in root.iter("g") if g.get("id", "").startswith("c-bin-")]) == len(bars)
    for corners in bars.values():
        assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
    tops = sorted((counts[i], -min(y for _, y in corners)) for i, corners in bars.items())
    assert all(one[1] <= other[1] + 0.01 for one, other in pairwise(tops))  # more documents, a higher bar
    for i, corners in bars.items():
        color = "var(--s0)" if edges[i] >= limit else "var(--s1)"
        shape = group(root, f"bin-{i}").find("path")
        assert shape is not None and color in shape.get("style", ""), (i, corners)
    assert f"≥ {limit:g}" in texts(root)
    assert len(chart.table.rows) == len(bars) and chart.description.startswith(f"{sum(counts):,} from 0 to ")


def test_a_histogram_s_axes_have_numbers_for_labels() -> None:
    for is_log in (True, False):
        root = svg(
            Histogram("t", "u", (0, 1, 50, 20_000), (3, 0, 70_000), (-math.inf, 100.0), (("≤ 100", 100.0),), is_log)
        )
        shown = [*labels(root, 1), *labels(root, 2)]
        assert len(shown) > 5 and all(re.fullmatch(r"[\d,.]+", label) for label in shown)


def test_a_band_of_standard_errors_is_inside_the_drawing_and_around_its_curve() -> None:
    errors = ((10.0, 0.2), (30.0, 0.1))  # the point between has none
    root = svg(LineChart("t", "u", (Series("a", ((10.0, 0.5), (20.0, 0.6), (30.0, 0.5)), errors=errors),)))
    (band,) = (use for use in root.iter("use") if "opacity: 0.15" in use.get("style", ""))
    (shape,) = (shape for shape in root.iter("path") if f"#{shape.get('id')}" == band.get("href"))
    down = float(band.get("y", "nan"))
    corners = [(float(x), down + float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", shape.get("d", ""))]
    curve = path(root, "series-0")
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
    scale = (curve[0][1] - curve[1][1]) / 0.1
    assert {round(abs(y - curve[0][1]) / scale, 2) for _, y in corners} == {0.1, 0.2}


@settings(max_examples=40)
@given(curves)
def test_labels_of_ticks_differ_and_are_true(points: tuple) -> None:
    root = svg(LineChart("t", "u", (Series("a", points),)))
    for axis in (1, 2):
        ticks = labels(root, axis)
        values = [float(label.replace(",", "").replace("\u2212", "-")) for label in ticks]
        assert 2 <= len(set(values)) == len(values) <= 7
        gaps = [(b - a) / (y - x) for (x, a), (y, b) in pairwise(zip(ticks.values(), values, strict=True))]
        assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=0.01)


SPANS: list[tuple[Span, str, str]] = [("data", "0.5", "0.7"), ("amount", "0", "0.6"), ("share", "0", "1")]


@pytest.mark.parametrize(("axis", "first", "last"), SPANS)
def test_an_axis_spans_what_its_kind_of_quantity_asks_for(axis: Span, first: str, last: str) -> None:
    lines = list(labels(svg(LineChart("t", "u", (Series("a", ((10, 0.5), (20, 0.75))),), axis)), 2))
    assert (lines[0], lines[-1]) == (first, last)
    intervals = list(labels(svg(IntervalChart("t", "u", (Measure("a", 0.6, 0.5, 0.75),), axis=axis)), 1))
    assert intervals[0] == first


def test_an_amount_that_stays_zero_has_no_values_below_it() -> None:
    ticks = labels(svg(LineChart("t", "u", (Series("a", ((10, 0.0), (20, 0.0))),), "amount")), 2)
    assert next(iter(ticks)) == "0" and len(ticks) >= 2


def test_values_that_are_not_finite_are_left_out_of_a_drawing() -> None:
    """As of weights that have diverged."""
    points = ((0.0, math.inf), (1.0, 3.0), (2.0, math.nan), (3.0, 2.0))
    diverged = LineChart("a", "u", (Series("one", points), Series("two", ((0.0, math.nan),))))
    assert set(labels(svg(diverged), 2)) >= {"2", "3"}
    assert labels(svg(LineChart("a", "u", (Series("one", points[:1]),))), 2)


def test_a_long_name_takes_more_lines_and_no_other_row_s_place() -> None:
    names = ["trigram of as many tokens as seen", "short", "x" * (3 * NAME + 5)]
    root = svg(BarChart("t", "u", tuple((name, 1, "one") for name in names)))
    placed = [(e.text, e.get("style", ""), float(e.get("y", "nan"))) for e in root.iter("text") if e.text != "one"]
    assert [text for text, _, _ in placed] == [
        "trigram of as many", "tokens as seen", "short", *["x" * NAME] * 3, "x" * 5,
    ]  # fmt: skip
    assert all("text-anchor: end" in style for _, style, _ in placed)
    assert all(b[2] - a[2] > 13 for a, b in pairwise(placed))


def test_intervals_and_bars_keep_their_proportions() -> None:
    measures = (Measure("a", 0.5, 0.4, 0.6), Measure("b", 0.1, 0.0, 0.2, is_baseline=True))
    chart = IntervalChart("t", "u", measures, ("chance", 0.25))
    root = svg(chart)
    (a, y), (b, _) = path(root, "interval-0")
    (c, z), (d, _) = path(root, "interval-1")
    assert b - a == pytest.approx(d - c) and a - c == pytest.approx(2 * (b - a)) and y < z
    assert {"a", "b", "chance"} <= set(texts(root)) and any("0.500" in text for text in texts(root))
    assert chart.description == "a 0.5000 from 0.4000 to 0.6000; b 0.1000 from 0 to 0.2000; chance 0.2500."
    root = svg(BarChart("t", "u", (("x", 10, "ten"), ("y", 5, "five"), ("z", 0, "none"))))
    lengths = [max(x for x, _ in bar) - min(x for x, _ in bar) for bar in (path(root, f"bar-{i}") for i in range(3))]
    assert lengths[1] == pytest.approx(lengths[0] / 2) and lengths[2] == 0
    assert {"x", "y", "z", "ten", "five", "none"} <= set(texts(root))


def test_a_drawing_has_the_page_s_colours_and_refers_to_nothing_outside() -> None:
    series = tuple(Series(name, ((10, 1.0), (20, 2.0)), dots=True) for name in ("one", "two", "three"))
    drawing = draw(LineChart("t", "u", series), "chart-7")
    assert {"var(--s0)", "var(--s1)", "var(--s2)", "var(--soft)", "var(--rule)"} <= set(
        re.findall(r"var\(.*?\)", drawing)
    )
    assert not re.search(r"#0000a|url\(|http|font|DejaVu|<style|<metadata", drawing)
    root = ElementTree.fromstring(drawing)
    ids = [element.get("id", "") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(name.startswith("chart-7-") for name in ids)
    assert {element.get("href", "")[1:] for element in root.iter("use")} <= set(ids)


@pytest.mark.parametrize("name", ["a <b>&amp; $x^2$", "tab\there", "\x00\ud800", "fill: #0000a0"])
def test_names_stay_texts(name: str) -> None:
    points = ((10, 1.0), (20, 2.0))
    for chart in (
        LineChart("t", "u", (Series(name, points), Series("b", points))),
        IntervalChart("t", "u", (Measure(name, 0.5, 0.4, 0.6),), (name, 0.45)),
        BarChart("t", "u", ((name, 1, name),)),
    ):
        assert format.printable(name) in texts(svg(chart))


def test_drawing_is_deterministic(tmp_path: Path) -> None:
    """In another process, with other hashes and other settings of the user's."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\nsvg.fonttype: path\n")
    charts = [
        LineChart("t", "u", (Series("a", ((10, 1.0), (20, 2.0)), dots=True), Series("b", ((10, 3.0), (20, 2.5))))),
        IntervalChart("t", "u", (Measure("a", 0.5, 0.4, 0.6),)),
        BarChart("t", "u", (("x", 10, "10"),)),
    ]
    code = "from lifecycle.report.blocks import *\nfrom lifecycle.report.charts import draw\n"
    code += f"for chart in {charts!r}: print(draw(chart, 'c'))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path)}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert output.stdout.splitlines() == [draw(chart, "c") for chart in charts]


def test_the_command_line_does_not_import_matplotlib() -> None:
    code = "import sys, lifecycle.cli.main, lifecycle.stages.config; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


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
    ("text", "expected"),
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
def test_numbers_as_texts(text: str, expected: str) -> None:
    assert text == expected


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
