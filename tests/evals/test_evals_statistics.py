"""Intervals and tests against scipy's own, and the laws behind the gate's decision."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lifecycle.evals.statistics import compare_paired, compare_unpaired, estimate

SCORES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=30)


@given(st.integers(2, 400), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_binary_scores_get_wilsons_interval(n: int, part: float, level: float) -> None:
    """Against the closed form of Wilson, JASA 22, 1927."""
    successes = round(part * n)
    result = estimate([1.0] * successes + [0.0] * (n - successes), [1.0] * n, level)
    share, z = successes / n, float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert (result.mean, result.method) == (share, "Wilson")
    assert (result.low, result.high) == pytest.approx((max(0, centre - reach), min(1, centre + reach)), abs=1e-12)


def test_interval_of_a_mean_is_students() -> None:
    scores = np.random.default_rng(0).normal(3, 2, 40)
    result = estimate(list(scores), [1.0] * 40, 0.95)
    expected = stats.t.interval(0.95, 39, loc=scores.mean(), scale=stats.sem(scores))
    assert (result.low, result.high) == pytest.approx(expected, rel=1e-12)
    assert result.method == "Student t"


def test_interval_of_a_ratio_covers_as_often_as_it_says() -> None:
    """Documents of unequal length: 95 % intervals of total bits / total bytes hold the truth in about 95 % of draws."""
    rng = np.random.default_rng(1)
    rounds, covered = 1000, 0
    for _ in range(rounds):
        sizes = rng.gamma(2.0, 500.0, 80) + 50
        rates = 2.0 + rng.normal(0, 0.3, 80)
        result = estimate(list(rates), list(sizes), 0.95)
        covered += result.low <= 2.0 <= result.high
    assert 0.92 <= covered / rounds <= 0.975


def test_paired_t_is_scipys() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(2.0, 1.0, 25)
    after = before + rng.normal(0.1, 0.4, 25)
    for higher in (True, False):
        result = compare_paired(list(before), list(after), [1.0] * 25, higher, 0.95)
        expected = stats.ttest_rel(after, before, alternative="less" if higher else "greater")
        assert result.p == pytest.approx(expected[1], rel=1e-9)
        both = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert (result.low, result.high) == pytest.approx((both.low, both.high), rel=1e-9)


@pytest.mark.parametrize(("up", "down"), [(0, 1), (0, 6), (3, 9), (9, 3), (0, 0)])
def test_mcnemar_is_the_binomial_test_of_the_changed_examples(up: int, down: int) -> None:
    before = [0.0] * up + [1.0] * down + [1.0] * 10
    after = [1.0] * up + [0.0] * down + [1.0] * 10
    result = compare_paired(before, after, [1.0] * len(before), True, 0.95)
    expected = stats.binomtest(down, up + down, 0.5, alternative="greater").pvalue if up + down else 1.0
    assert result.p == pytest.approx(expected, rel=1e-12)
    assert result.test == "exact McNemar"
    assert result.low <= result.difference <= result.high


def test_interval_of_paired_proportions_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    rounds, covered = 1000, 0
    for _ in range(rounds):
        draw = rng.random(60)
        before = (draw < 0.6).astype(float)
        after = np.where(draw < 0.1, 0.0, np.where((draw > 0.8), 1.0, before))  # falls 0.1, rises 0.2
        result = compare_paired(list(before), list(after), [1.0] * 60, True, 0.95)
        covered += result.low <= 0.1 <= result.high
    assert 0.93 <= covered / rounds <= 0.985


def test_unpaired_is_welchs() -> None:
    rng = np.random.default_rng(4)
    before, after = rng.normal(1.0, 1.0, 20), rng.normal(1.2, 2.0, 35)
    result = compare_unpaired((list(before), [1.0] * 20), (list(after), [1.0] * 35), True, 0.95)
    expected = stats.ttest_ind(after, before, equal_var=False, alternative="less")
    both = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert result.p == pytest.approx(expected[1], rel=1e-9)
    assert (result.low, result.high) == pytest.approx((both.low, both.high), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.randoms())
def test_a_comparison_turns_over_with_its_sides(scores: list[float], random: object) -> None:
    rng = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    other = [score + float(rng.normal()) for score in scores]
    weights = list(rng.uniform(1, 9, len(scores)))
    there = compare_paired(scores, other, weights, True, 0.95)
    back = compare_paired(other, scores, weights, True, 0.95)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p + back.p == pytest.approx(1.0)
    # the one-sided test at 2.5 % and the 95 % interval are one decision
    assert (there.p < 0.025) == (there.high < 0)


def test_no_change_is_no_fall_and_a_fall_of_all_alike_is() -> None:
    scores, weights = [1.0, 2.5, 3.0], [10.0, 20.0, 30.0]
    assert compare_paired(scores, scores, weights, False, 0.95).p == 1.0
    assert compare_paired(scores, [2.0, 3.5, 4.0], [1.0] * 3, False, 0.95).p == 0.0


def test_one_example_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        estimate([1.0], [1.0], 0.95)


@given(SCORES)
def test_scores_all_alike_have_an_interval_without_width(scores: list[float]) -> None:
    result = estimate([scores[0]] * len(scores), [1.0] * len(scores), 0.95)
    assert result.low <= scores[0] + 1e-12 and result.high >= scores[0] - 1e-12
    assert result.method == "Wilson" or result.high - result.low < 1e-9
