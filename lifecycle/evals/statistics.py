"""Confidence intervals and tests on per-example scores.

An evaluation is a list of weighted scores, and its value is their weighted mean: accuracies have weight 1, bits per
byte are weighted by the document's bytes. The variance of the weighted mean is the linearised one of a ratio estimator
(Cochran, Sampling Techniques, 3rd ed. 1977, chapter 6). It equals the textbook's s^2/n for equal weights, so one
formula serves both.

Tests and quantiles are scipy's; the weighted mean's error and the intervals that scipy lacks are here.

| what | scores all 0 or 1, weights 1 | otherwise |
|---|---|---|
| interval of one value | Wilson 1927 | Student t, n - 1 degrees of freedom |
| two versions, the same examples | exact McNemar 1947; interval of Bonett and Price 2012 | paired t |
| two versions, different examples | Welch's t | Welch's t |

Tests are one-sided, "not worse", at (1 - level) / 2: the t tests then reject exactly when the two-sided interval of
that level is on the worse side of zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanInterval:
    """A weighted mean with its confidence interval."""

    mean: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """After minus before, with its interval; `p` is the probability of at least this drop if nothing got worse."""

    difference: float
    low: float
    high: float
    p: float
    test: str


def estimate(scores: Sequence[float], weights: Sequence[float], level: float) -> MeanInterval:
    """The weighted mean of at least two scores and its interval of this level (0.95: 95 %)."""
    values, shares = _arrays(scores, weights)
    if _is_binary(values, shares):
        interval = stats.binomtest(int(values.sum()), len(values)).proportion_ci(level, method="wilson")
        return MeanInterval(float(values.mean()), float(interval.low), float(interval.high), "Wilson")
    mean, error = _mean_and_error(values, shares)
    reach = _t_quantile(len(values) - 1, level) * error
    return MeanInterval(mean, mean - reach, mean + reach, "Student t")


def standard_error(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Of the weighted mean of at least two scores."""
    return _mean_and_error(*_arrays(scores, weights))[1]


def compare_paired(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float], higher_is_better: bool, level: float
) -> Comparison:
    """Compares two versions on the same examples, given in the same order."""
    old, shares = _arrays(before, weights)
    new, _ = _arrays(after, weights)
    if _is_binary(old, shares) and _is_binary(new, shares):
        return _mcnemar(old, new, higher_is_better, level)
    difference, error = _mean_and_error(new - old, shares)
    return _t_comparison(difference, error, len(old) - 1, higher_is_better, level, "paired t")


def compare_unpaired(
    before: tuple[Sequence[float], Sequence[float]],
    after: tuple[Sequence[float], Sequence[float]],
    higher_is_better: bool,
    level: float,
) -> Comparison:
    """Compares two versions that were scored on different examples; each is (scores, weights)."""
    old, old_error = _mean_and_error(*_arrays(*before))
    new, new_error = _mean_and_error(*_arrays(*after))
    variances = np.array([old_error**2, new_error**2])
    freedoms = np.array([len(before[0]) - 1, len(after[0]) - 1])
    total = float(variances.sum())
    freedom = total**2 / float((variances**2 / freedoms).sum()) if total > 0 else float(freedoms.sum())
    return _t_comparison(new - old, math.sqrt(total), freedom, higher_is_better, level, "Welch's t")


def _arrays(scores: Sequence[float], weights: Sequence[float]) -> tuple[Floats, Floats]:
    values, shares = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    assert values.shape == shares.shape and values.ndim == 1
    if len(values) < 2:
        raise ValueError(f"{len(values)} example(s): an interval and a test need at least two; add rows to the task")
    return values, shares


def _is_binary(values: Floats, weights: Floats) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all() and (weights == 1.0).all())


def _mean_and_error(values: Floats, weights: Floats) -> tuple[float, float]:
    """The weighted mean and its standard error, linearised."""
    n, total = len(values), weights.sum()
    mean = float((weights * values).sum() / total)
    residuals = weights * (values - mean)
    return mean, float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / total)


def _t_comparison(
    difference: float, error: float, freedom: float, higher_is_better: bool, level: float, test: str
) -> Comparison:
    gain = difference if higher_is_better else -difference
    unanimous = 0.0 if gain < 0 else 1.0  # no variance: every example moved by the same amount
    p = float(stats.t.cdf(gain / error, freedom)) if error > 0 else unanimous
    reach = _t_quantile(freedom, level) * error
    return Comparison(difference, difference - reach, difference + reach, p, test)


def _mcnemar(before: Floats, after: Floats, higher_is_better: bool, level: float) -> Comparison:
    """Exact McNemar test (Psychometrika 12, 1947); interval: Bonett and Price, Statist. Med. 31, 2012."""
    n = len(before)
    up, down = int((after > before).sum()), int((after < before).sum())
    worse = down if higher_is_better else up
    p = float(stats.binomtest(worse, up + down, alternative="greater").pvalue) if up + down else 1.0
    up_share, down_share = (up + 1) / (n + 2), (down + 1) / (n + 2)
    centre = up_share - down_share
    z = float(stats.norm.ppf((1 + level) / 2))
    reach = z * math.sqrt((up_share + down_share - centre**2) / (n + 2))
    return Comparison((up - down) / n, max(-1.0, centre - reach), min(1.0, centre + reach), p, "exact McNemar")


def _t_quantile(freedom: float, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, freedom))
