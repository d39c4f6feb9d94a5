"""The mixture law `L_i(r) = floor_i + exp(slopes_i . r)`: a domain's loss as a function of the sources' shares `r`,
fitted to small runs, and the shares with the lowest loss.

The law is that of Ye et al. 2024 ("Data Mixing Laws", equation 4); that mixtures rank alike at small and large sizes is
what RegMix (Liu et al. 2024, section 4) found and rests on. Runs are few, so each domain has a ridge regression of the
log of its loss, whose floor and penalty are those with the least leave-one-out error. What must hold: losses that
follow a law give its best shares; errors are of runs that the fit has not seen, with floor and penalty chosen without
them; no share is advised that lies outside those that were tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import gammaincinv
from scipy.stats import spearmanr

FLOORS = (0.0, 0.25, 0.5, 0.75, 0.9)  # of a domain's lowest loss
PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the shares' own variance
CONCENTRATIONS = (1.0, 2.0, 4.0)  # of the Dirichlet draws, times the number of sources: wide, less wide, close

type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DomainLaw:
    """A domain's loss: `floor + exp(slopes . r)`."""

    floor: float
    slopes: Floats

    def loss(self, shares: ArrayLike) -> Floats:
        """Of each row of shares."""
        return self.floor + np.exp(np.asarray(shares) @ self.slopes)


@dataclass(frozen=True)
class MixtureLaw:
    """The mean of the domains' losses, in these shares of it."""

    domains: tuple[DomainLaw, ...]
    weights: Floats

    def loss(self, shares: ArrayLike) -> Floats:
        """Of each row of shares."""
        return np.stack([law.loss(shares) for law in self.domains], -1) @ self.weights

    def gradient(self, shares: Floats) -> Floats:
        """Of one row of shares, by each share."""
        rises = (
            w * np.exp(shares @ law.slopes) * law.slopes for w, law in zip(self.weights, self.domains, strict=True)
        )
        return np.sum(list(rises), axis=0)


@dataclass(frozen=True)
class Fit:
    """A law, the root mean square of its errors at runs that were left out, and the rank correlation of what it
    predicts for these with what was measured."""

    law: MixtureLaw
    error: float
    rank_correlation: float


def fit(shares: Floats, losses: Floats, weights: Floats) -> Fit:
    """The law of `shares` (a row for each run) and `losses` (of each run and domain); `weights` of the domains."""
    weights = weights / weights.sum()
    others = [np.arange(len(shares)) != run for run in range(len(shares))]
    left_out = [
        float(MixtureLaw(_domains(shares[known], losses[known]), weights).loss(shares[run]))
        for run, known in enumerate(others)
    ]
    measured = losses @ weights
    error = float(np.sqrt(np.mean((np.array(left_out) - measured) ** 2)))
    ranks = float(spearmanr(left_out, measured).statistic)
    return Fit(MixtureLaw(_domains(shares, losses), weights), error, ranks if np.isfinite(ranks) else 0.0)


def _domains(shares: Floats, losses: Floats) -> tuple[DomainLaw, ...]:
    return tuple(fit_domain(shares, of) for of in losses.T)


def fit_domain(shares: Floats, losses: Floats) -> DomainLaw:
    """The law of one domain, with the floor and the penalty whose leave-one-out error is the lowest."""
    mean = shares.mean(0)
    centred = shares - mean
    moments, scale = centred.T @ centred, float(np.mean(np.sum(centred**2, 1)))
    best, lowest = None, np.inf
    for floor in (share * losses.min() for share in FLOORS):
        logs = np.log(losses - floor)
        for penalty in PENALTIES:
            inverse = np.linalg.inv(moments + (penalty * scale * len(shares) + 1e-12) * np.eye(len(mean)))
            slopes = inverse @ centred.T @ (logs - logs.mean())
            leverage = 1 / len(shares) + np.einsum("ij,jk,ik->i", centred, inverse, centred)
            residuals = logs - logs.mean() - centred @ slopes
            guesses = floor + np.exp(logs - residuals / (1 - leverage))
            error = float(np.mean((guesses - losses) ** 2))
            if error < lowest:  # shares sum to 1: what is the same for all of them is in the slopes
                best, lowest = DomainLaw(floor, slopes + logs.mean() - mean @ slopes), error
    assert best is not None
    return best


def best_shares(law: MixtureLaw, lowest: Floats, highest: Floats) -> Floats:
    """The shares with the lowest loss, between these bounds. The law is convex, so there is one minimum.

    Raises `ValueError` if no shares within the bounds sum to 1.
    """
    if lowest.sum() > 1 + 1e-9 or highest.sum() < 1 - 1e-9:
        raise ValueError(f"shares from {lowest.tolist()} to {highest.tolist()} cannot sum to 1")
    room = float((highest - lowest).sum())
    start = lowest + (highest - lowest) * ((1 - lowest.sum()) / room if room else 0.0)
    found = minimize(
        lambda shares: float(law.loss(shares)), start, jac=law.gradient, method="SLSQP",
        bounds=list(zip(lowest, highest, strict=True)), options={"maxiter": 1000, "ftol": 1e-12},
        constraints={"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    shares = np.clip(found.x, lowest, highest)
    return shares / shares.sum()


def drawn_shares(centre: Mapping[str, float], number: int, seed: int) -> dict[str, float]:
    """Draw `number` of a Dirichlet distribution around shares that sum to 1. Depends on the arguments alone."""
    names = sorted(centre)
    raw = np.random.Philox(np.random.SeedSequence([seed, number, *b"mixture"])).random_raw(len(names))
    uniform = (np.asarray(raw, np.float64) + 0.5) / 2.0**64
    alphas = CONCENTRATIONS[number % len(CONCENTRATIONS)] * len(names) * np.array([centre[name] for name in names])
    sizes: Sequence[float] = np.maximum(gammaincinv(alphas, uniform), 1e-12).tolist()
    return {name: size / sum(sizes) for name, size in zip(names, sizes, strict=True)}
