"""Win rates: how often a judge prefers one model's answers to another's, and how often if both were of equal length.

A comparison is 1, 0, or 0.5 for a tie. The length-controlled win rate is that of Dubois et al. 2024, "Length-Controlled
AlpacaEval" (arXiv 2404.04475), section 3, with one pair of models and without the difficulty of instructions, which
takes many models to estimate: AlpacaEval's `length_controlled_minimal`. A logistic regression

    P(win) = sigmoid(theta + phi * tanh(d / s))

is fitted to the comparisons, where d is the first answer's length minus the other's in letters, and s the standard
deviation of all d, not centred: at d = 0 lengths are equal, and the rate there is sigmoid(theta). The summed loss has a
ridge penalty of (theta^2 + phi^2) / 200, AlpacaEval's C of 100, so that answers which always win have a rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifecycle.evals.results import LEVEL
from lifecycle.evals.statistics import estimate

RIDGE = 0.01  # 1 / C
RESAMPLES, SEED = 1000, 0  # of the bootstrap (Efron 1979), by percentiles
ITERATIONS, CONVERGED = 60, 1e-9  # Newton's; a separable sample takes about 15

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """Of `n` comparisons. `controlled`: as if both answers were equally long; None where all differ by one length, from
    which nothing can be told."""

    n: int
    wins: int
    ties: int
    losses: int
    rate: Rate
    controlled: Rate | None


def win_rate(scores: Sequence[float], lengths: Sequence[tuple[int, int]]) -> WinRate:
    """The win rate of at least two comparisons. `lengths`: in letters, of each one's answer and the other's. Intervals:
    of the rate Wilson's, or Student's t with ties; of the controlled one the bootstrap's."""
    values, differences = np.asarray(scores, np.float64), np.array([own - other for own, other in lengths], np.float64)
    found = estimate(values.tolist(), [1.0] * len(values), LEVEL)
    rate = Rate(found.mean, max(0.0, found.low), min(1.0, found.high))
    wins, losses = int((values == 1).sum()), int((values == 0).sum())
    return WinRate(len(values), wins, len(values) - wins - losses, losses, rate, _controlled(values, differences))


def _controlled(values: Floats, differences: Floats) -> Rate | None:
    spread = float(differences.std(ddof=1))
    if spread == 0 and differences.any():
        return None
    lengths = np.tanh(differences / spread) if spread else differences
    draw, n = np.random.default_rng(SEED), len(values)
    resampled = draw.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    mean, *others = equal_length_rates(values, lengths, np.concatenate([np.ones((1, n)), resampled])).tolist()
    low, high = np.quantile(others, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(mean, float(low), float(high))


def equal_length_rates(values: Floats, lengths: Floats, counts: Floats) -> Floats:
    """sigmoid(theta) of samples `[R]`: `counts` `[R, N]` says how often each has each of the `N` comparisons."""
    columns = np.stack([np.ones_like(lengths), lengths])  # [2, N]
    products = np.stack([np.ones_like(lengths), lengths, lengths, lengths**2])  # [4, N]
    weights = np.zeros((len(counts), 2))
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(-weights @ columns))
        slope = (counts * (chance - values)) @ columns.T + RIDGE * weights
        curved = ((counts * chance * (1 - chance)) @ products.T).reshape(-1, 2, 2) + RIDGE * np.eye(2)
        step = np.clip(np.linalg.solve(curved, slope[..., None])[..., 0], -1, 1)  # whole ones may overshoot
        weights -= step
        if np.abs(step).max() < CONVERGED:
            break
    return 1 / (1 + np.exp(-weights[:, 0]))
