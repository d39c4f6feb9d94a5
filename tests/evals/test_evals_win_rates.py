"""Win rates: counts, intervals, and what remains of a rate when lengths are equal."""

import numpy as np
import pytest
from scipy.optimize import minimize

from lifecycle.evals.win_rates import RIDGE, equal_length_rates, win_rate

DRAW = np.random.default_rng(0)


def lengths_of(differences: np.ndarray) -> list[tuple[int, int]]:
    return [(1000 + int(d), 1000) for d in differences]


def test_ties_are_halves_and_intervals_stay_shares() -> None:
    found = win_rate([1, 1, 0, 0.5], [(5, 3), (3, 3), (2, 9), (4, 4)])
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)
    assert found.rate.mean == 0.625 and 0 <= found.rate.low < 0.625 < found.rate.high <= 1
    binary = win_rate([1, 1, 0, 1], [(1, 2)] * 4).rate
    assert (binary.low, binary.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson's
    ties = win_rate([0.5] * 9, [(n, 5) for n in range(9)])
    assert (ties.rate.low, ties.rate.mean, ties.rate.high) == (0.5, 0.5, 0.5)
    assert ties.controlled is not None and ties.controlled.mean == pytest.approx(0.5)


def test_the_regression_is_scipys(n: int = 60) -> None:
    values, lengths = DRAW.choice([0, 0.5, 1], n), np.tanh(DRAW.standard_normal(n))

    def loss(weights: np.ndarray) -> float:
        z = weights[0] + weights[1] * lengths
        return float((np.logaddexp(0, z) - values * z).sum() + RIDGE / 2 * (weights**2).sum())

    expected = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    (found,) = equal_length_rates(values, lengths, np.ones((1, n)))
    assert found == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-6)


def test_a_bias_for_length_is_taken_out_and_quality_is_not() -> None:
    """The first model's answers are longer by 300 letters in the mean; the judge likes length, or is fair."""
    differences = 300 + 400 * DRAW.standard_normal(500)
    liked = 1 / (1 + np.exp(-2.5 * np.tanh(differences / 400)))
    biased = win_rate((DRAW.random(500) < liked).astype(float).tolist(), lengths_of(differences))
    assert biased.controlled is not None
    assert biased.rate.low > 0.6 and biased.controlled.low < 0.5 < biased.controlled.high
    assert biased.controlled.mean == pytest.approx(0.5, abs=0.08)
    fair = win_rate((DRAW.random(500) < 0.7).astype(float).tolist(), lengths_of(differences))
    assert fair.controlled is not None
    assert fair.controlled.mean == pytest.approx(0.7, abs=0.08) and fair.controlled.low > 0.6


def test_answers_that_always_win_or_lose_have_a_rate() -> None:
    differences = 100 * DRAW.standard_normal(200)
    for score in (0.0, 1.0):
        found = win_rate([score] * 200, lengths_of(differences)).controlled
        assert found is not None and abs(found.mean - score) < 0.01 and 0 <= found.low <= found.high <= 1
    longest = win_rate((differences > 0).astype(float).tolist(), lengths_of(differences)).controlled
    assert longest is not None and abs(longest.mean - 0.5) < 0.2  # a judge of length alone


def test_equal_lengths_leave_the_rate_and_one_difference_tells_nothing() -> None:
    scores = [1.0] * 70 + [0.0] * 30
    equal = win_rate(scores, [(5, 5)] * 100)
    assert equal.controlled is not None and equal.controlled.mean == pytest.approx(0.7, abs=1e-3)
    assert win_rate(scores, [(9, 5)] * 100).controlled is None


def test_the_bootstrap_is_the_same_each_time() -> None:
    differences = 100 * DRAW.standard_normal(50)
    scores = DRAW.choice([0, 0.5, 1], 50).tolist()
    assert win_rate(scores, lengths_of(differences)) == win_rate(scores, lengths_of(differences))
