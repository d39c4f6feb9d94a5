"""The loss law `L(N, D) = E + A / N^alpha + B / D^beta` of parameters and tokens, fitted to trained runs.

Fitted as Hoffmann et al. 2022 do ("Training Compute-Optimal Large Language Models", approach 3 and appendix D.2): the
Huber loss of the logarithms, minimised from several starts. A prediction has an interval: losses are drawn from the
fitted law with the scatter of the residuals around it, whose own uncertainty a chi-squared draw stands for, and the law
is fitted again to each draw. What must hold: runs that follow a law give this law, and the interval has the measured
loss of a run as often as it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import least_squares, nnls

HUBER = 1e-3  # Hoffmann et al.'s delta
NUM_PARAMETERS = 5  # of the law
FEWEST_RUNS = NUM_PARAMETERS + 2
EXPONENTS = (0.05, 1.5)  # bounds; published ones are between 0.3 and 0.5
STARTS = (0.2, 0.4, 0.8)  # of both exponents; the other three follow from a linear fit
POLISHED = 3  # of the best starts
DRAWS = 200
LEVEL = 0.9  # of the intervals
RATIOS = (1e-12, 1e12)  # bounds of tokens per parameter: a short ladder may leave one of the two terms open
SMALLEST_SHARE = 1e-3  # of a loss, that a term of the law has at a start


@dataclass(frozen=True)
class Trained:
    """A finished run: its parameters, its tokens and its loss."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class LossLaw:
    """`L = irreducible + a / N^alpha + b / D^beta`."""

    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        """The loss of a model of `params` parameters after `tokens` tokens."""
        return self.irreducible + self.a * params**-self.alpha + self.b * tokens**-self.beta

    def best_params(self, flops: float) -> float:
        """The parameters with the lowest loss at `6 N D = flops`."""
        return (flops / 6 / self.best_ratio(flops)) ** 0.5

    def best_ratio(self, flops: float) -> float:
        """The tokens per parameter with the lowest loss at `6 N D = flops` (Hoffmann et al., equation 4); at a bound of
        `RATIOS` if one of the two terms is next to nothing."""
        of_params, of_tokens = np.log(np.maximum([self.alpha * self.a, self.beta * self.b], np.finfo(float).tiny))
        log_product = np.log(flops / 6)
        log_params = (of_params - of_tokens + self.beta * log_product) / (self.alpha + self.beta)
        return float(np.exp(np.clip(log_product - 2 * log_params, *np.log(RATIOS))))


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is inside the interval."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Prediction:
    """What others say about a run: the law, its loss, and the tokens per parameter that are best for its FLOPs."""

    law: LossLaw
    loss: Estimate
    best_ratio: Estimate


def fit_law(runs: Sequence[Trained]) -> LossLaw:
    """The law nearest to these runs. Raises `ValueError` for fewer than `FEWEST_RUNS`."""
    if len(runs) < FEWEST_RUNS:
        raise ValueError(
            f"{len(runs)} runs cannot hold a law of {NUM_PARAMETERS} parameters; train {FEWEST_RUNS} or more"
        )
    points = _Points(runs)
    starts = [points.start(alpha, beta) for alpha, beta in product(STARTS, STARTS)]
    starts.sort(key=lambda start: points.cost(start, points.logs))
    return points.law(points.best(starts[:POLISHED], points.logs))


def predict(runs: Sequence[Trained], params: float, tokens: float, seed: int = 0, draws: int = DRAWS) -> Prediction:
    """What these runs say about another one, with intervals of `LEVEL`. Raises `ValueError` as `fit_law` does."""
    law, points, draw = fit_law(runs), _Points(runs), np.random.default_rng(seed)
    theta = points.theta(law)
    fitted = points.log_losses(theta)
    dof = len(runs) - NUM_PARAMETERS
    scatter = float(np.sqrt(np.sum((fitted - points.logs) ** 2) / dof))
    losses, ratios = [], []
    for _ in range(draws):
        spread = scatter * np.sqrt(dof / draw.chisquare(dof))
        drawn = points.law(points.best([theta], fitted + spread * draw.normal(size=len(runs))))
        losses.append(drawn.loss(params, tokens) * np.exp(spread * draw.normal()))  # a run has scatter of its own
        ratios.append(drawn.best_ratio(6 * params * tokens))
    loss, ratio = law.loss(params, tokens), law.best_ratio(6 * params * tokens)
    return Prediction(law, _estimate(loss, losses), _estimate(ratio, ratios))


def power_law(xs: Sequence[float], ys: Sequence[float], at: float) -> Estimate:
    """The value at `at` of the power law through these points, by least squares of the logarithms, with the interval of
    `LEVEL` for one more point (Student's t)."""
    x, y = np.log(xs), np.log(ys)
    slope, intercept = np.polyfit(x, y, 1)
    dof, distance = len(x) - 2, np.log(at) - x.mean()
    scatter = np.sqrt(np.sum((y - intercept - slope * x) ** 2) / dof)
    spread = scatter * np.sqrt(1 + 1 / len(x) + distance**2 / np.sum((x - x.mean()) ** 2))
    middle, reach = intercept + slope * np.log(at), stats.t.ppf((1 + LEVEL) / 2, dof) * spread
    return Estimate(*(float(np.exp(value)) for value in (middle, middle - reach, middle + reach)))


def _estimate(value: float, drawn: Sequence[float]) -> Estimate:
    """The wider, on each side, of the percentile interval and the basic one, which mirrors it: far from the runs the
    draws are skewed, and either alone holds a run's loss too rarely."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(min(low, value**2 / high)), float(max(high, value**2 / low)))


class _Points:
    """Runs relative to their geometric means, in which the law's parameters are of one size: theta is `(log E, log A',
    log B', alpha, beta)` for `L = E + A' (N / N0)^-alpha + B' (D / D0)^-beta`."""

    def __init__(self, runs: Sequence[Trained]) -> None:
        log_params, log_tokens, self.logs = np.log([[run.params, run.tokens, run.loss] for run in runs]).T
        self.centre = log_params.mean(), log_tokens.mean()
        self.params, self.tokens = log_params - self.centre[0], log_tokens - self.centre[1]

    def log_losses(self, theta: np.ndarray) -> np.ndarray:
        terms = np.stack([np.full_like(self.params, theta[0]), theta[1] - theta[3] * self.params,
                          theta[2] - theta[4] * self.tokens])  # fmt: skip
        return np.logaddexp.reduce(terms)

    def cost(self, theta: np.ndarray, logs: np.ndarray) -> float:
        return float(np.abs(self.log_losses(theta) - logs).sum())

    def start(self, alpha: float, beta: float) -> np.ndarray:
        """The best non-negative factors for these exponents, by relative squares."""
        columns = np.stack([np.ones_like(self.params), np.exp(-alpha * self.params), np.exp(-beta * self.tokens)], 1)
        losses = np.exp(self.logs)
        factors, _ = nnls(columns / losses[:, None], np.ones_like(losses))
        return np.array([*np.log(np.maximum(factors, SMALLEST_SHARE * losses.mean())), alpha, beta])

    def best(self, starts: Sequence[np.ndarray], logs: np.ndarray) -> np.ndarray:
        slopes: Any = self._slopes
        bounds = ([-np.inf] * 3 + [EXPONENTS[0]] * 2, [np.inf] * 3 + [EXPONENTS[1]] * 2)
        found = [
            least_squares(
                lambda theta: self.log_losses(theta) - logs,
                np.clip(start, *bounds), jac=slopes, bounds=bounds, loss="huber", f_scale=HUBER, x_scale="jac",
            )
            for start in starts
        ]  # fmt: skip
        return min(found, key=lambda fit: fit.cost).x

    def _slopes(self, theta: np.ndarray) -> np.ndarray:
        """The derivatives of `log_losses`: each term's share of the loss, times its own."""
        shares = np.exp(np.stack([np.full_like(self.params, theta[0]), theta[1] - theta[3] * self.params,
                                  theta[2] - theta[4] * self.tokens]) - self.log_losses(theta))  # fmt: skip
        return np.stack([*shares, -self.params * shares[1], -self.tokens * shares[2]], 1)

    def law(self, theta: np.ndarray) -> LossLaw:
        alpha, beta = float(theta[3]), float(theta[4])
        a, b = np.exp(theta[1] + alpha * self.centre[0]), np.exp(theta[2] + beta * self.centre[1])
        return LossLaw(float(np.exp(theta[0])), float(a), alpha, float(b), beta)

    def theta(self, law: LossLaw) -> np.ndarray:
        factors = np.maximum([law.irreducible, law.a, law.b], np.finfo(float).tiny)
        logs = np.log(factors) - [0, law.alpha * self.centre[0], law.beta * self.centre[1]]
        return np.array([*logs, law.alpha, law.beta])
