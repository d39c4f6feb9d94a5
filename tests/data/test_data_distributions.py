"""Distributions: every value in one bin, a limit between bins, and what is outside counted exactly."""

import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from selected_folders import COLUMNS

from lifecycle.data.inspecting.distributions import BINS, Distribution, Score, bins_of, distributions_of, scores_of
from lifecycle.data.measures.steps import DocumentStep, Limit

whole = st.integers(0, 10**6)
shares = st.floats(0, 1, allow_subnormal=False)
bounds = st.tuples(st.one_of(st.just(-math.inf), shares), st.one_of(st.just(math.inf), shares)).filter(
    lambda pair: pair[0] <= pair[1] and any(map(math.isfinite, pair))
)


def counted(values: list[float], low: float, high: float, is_whole: bool) -> Distribution:
    score = Score("c", None, low, high, ())
    distribution = Distribution(score, bins_of(score, min(values), max(values), is_whole))
    distribution.add(np.array([*values, math.nan]))
    return distribution


def check(distribution: Distribution, values: list[float]) -> None:
    low, high, edges = distribution.score.low, distribution.score.high, distribution.bins.edges
    assert distribution.counts.sum() == distribution.num_documents == len(values)
    assert (np.diff(edges) > 0).all() and len(distribution.counts) <= BINS + 4
    assert distribution.num_below == sum(value < low for value in values)
    assert distribution.num_above == sum(value > high for value in values)
    inside = (edges[:-1] >= low) & (edges[:-1] <= high)
    assert distribution.counts[inside].sum() == len(values) - distribution.num_below - distribution.num_above


@given(st.lists(whole, min_size=1), st.integers(0, 10**6), st.booleans())
def test_counts_are_in_bins_that_end_at_the_limit(values: list[int], limit: int, is_low: bool) -> None:
    low, high = (limit, math.inf) if is_low else (-math.inf, limit)
    distribution = counted([float(value) for value in values], low, high, is_whole=True)
    check(distribution, [float(value) for value in values])
    assert (distribution.bins.edges == np.floor(distribution.bins.edges)).all()


@given(st.lists(shares, min_size=1), bounds)
def test_shares_are_in_bins_that_end_at_the_limits(values: list[float], limits: tuple[float, float]) -> None:
    check(counted([*values, *filter(math.isfinite, limits)], *limits, is_whole=False), [
        *values, *filter(math.isfinite, limits),
    ])  # fmt: skip


def test_limits_over_a_column_are_one_score_and_each_language_has_its_own() -> None:
    rules = (
        Limit("few", "word_count", "", low=5), Limit("many", "word_count", "", high=50),
        Limit("few", "share", "", low=0.5, language="en"), Limit("none", "absent", "", low=1),
    )  # fmt: skip
    scores = scores_of([DocumentStep("quality", None, rules)])  # pyrefly: ignore[bad-argument-type] - not run
    assert scores[0] == Score("word_count", None, 5, 50, ("few", "many")) and scores[1].language == "en"
    found = distributions_of(scores, {"word_count": (0, 9), "share": (0, 1)}, COLUMNS)
    assert [distribution.score.column for distribution in found] == ["word_count", "share"]
    rows = pa.record_batch({"share": [0.1, 0.2, None], "language": ["en", "fr", "en"]})
    assert np.array_equal(scores[1].values(rows), [0.1, math.nan, math.nan], equal_nan=True)


def test_nearness_is_relative_to_the_nearer_limit_and_only_of_what_passes() -> None:
    score = Score("c", None, 10, 100, ())
    found = score.nearness(np.array([9, 10, 12, 95, 100, 101, math.nan]))
    assert np.allclose(found, [math.nan, 0, 0.2, 0.05, 0, math.nan, math.nan], equal_nan=True)
