"""The mixture law: known laws are found again, the best shares are those of a grid, and errors are of unseen runs."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.planning.mixture_law import DomainLaw, MixtureLaw, best_shares, drawn_shares, fit, fit_domain

CENTRE = {"a": 0.6, "b": 0.3, "c": 0.1}
# Each domain falls with its own share, and a little with the next one's.
KNOWN = MixtureLaw(
    (
        DomainLaw(0.6, np.array([-1.5, 0.3, 0.1])),
        DomainLaw(0.4, np.array([0.2, -1.2, -0.2])),
        DomainLaw(0.9, np.array([0.1, 0.2, -2.0])),
    ),
    np.array([0.4, 0.4, 0.2]),
)


def runs(count: int, names: str = "abc") -> np.ndarray:
    drawn = [drawn_shares(CENTRE, number, seed=1) for number in range(count)]
    return np.array([[shares[name] for name in names] for shares in drawn])


def losses(shares: np.ndarray) -> np.ndarray:
    return np.stack([domain.loss(shares) for domain in KNOWN.domains], 1)


def grid(step: int) -> Iterator[tuple[float, ...]]:
    yield from (
        (i / step, j / step, 1 - (i + j) / step) for i, j in product(range(step + 1), repeat=2) if i + j <= step
    )


def test_the_best_shares_of_a_known_law_are_found_from_two_dozen_runs() -> None:
    shares = runs(24)
    found = fit(shares, losses(shares), KNOWN.weights)
    every = np.array(list(grid(100)))
    optimum = every[np.argmin(KNOWN.loss(every))]
    best = best_shares(found.law, np.zeros(3), np.ones(3))
    assert best == pytest.approx(optimum, abs=0.05)
    assert float(KNOWN.loss(best)) - float(KNOWN.loss(optimum)) < 2e-3
    assert float(KNOWN.loss(best)) < float(KNOWN.loss(np.array([0.6, 0.3, 0.1]))) - 0.01, "better than by size"
    assert found.error < 5e-3 and found.rank_correlation > 0.95


def test_the_search_finds_what_a_grid_finds_within_its_bounds() -> None:
    lowest, highest = np.array([0.1, 0.0, 0.05]), np.array([0.35, 0.9, 0.3])
    every = np.array(
        [point for point in grid(200) if np.all(point >= lowest - 1e-9) and np.all(point <= highest + 1e-9)]
    )
    best = best_shares(KNOWN, lowest, highest)
    assert best.sum() == pytest.approx(1) and np.all(best >= lowest) and np.all(best <= highest + 1e-9)
    assert float(KNOWN.loss(best)) <= KNOWN.loss(every).min() + 1e-9
    with pytest.raises(ValueError, match="cannot sum to 1"):
        best_shares(KNOWN, np.zeros(3), np.full(3, 0.3))


def test_the_gradient_is_that_of_differences() -> None:
    at = np.array([0.5, 0.2, 0.3])
    steps = 1e-6 * np.eye(3)
    differences = [(KNOWN.loss(at + step) - KNOWN.loss(at - step)) / 2e-6 for step in steps]
    assert KNOWN.gradient(at) == pytest.approx(differences, rel=1e-6)


def test_errors_are_of_runs_that_the_fit_has_not_seen() -> None:
    """Noise without any law: what is predicted of unseen runs ranks at random, and misses by more than the noise."""
    shares, noise = runs(16), np.random.default_rng(0).normal(0, 0.01, 16)
    found = fit(shares, (1.5 + noise)[:, None], np.ones(1))
    assert found.error > 0.9 * float(noise.std()) and found.rank_correlation < 0.5
    left = np.arange(16) != 5
    alone = float(fit_domain(shares[left], 1.5 + noise[left]).loss(shares[5]))
    assert abs(alone - 1.5) < 0.05
    clean = fit(shares, losses(shares), KNOWN.weights)
    noisy = fit(shares, losses(shares) + noise[:, None], KNOWN.weights)
    assert clean.error < noisy.error < 0.05


@settings(max_examples=50)
@given(st.dictionaries(st.text("xyz", min_size=1), st.floats(0.01, 1), min_size=2, max_size=6), st.integers(0, 99))
def test_draws_are_shares_and_depend_on_their_number_alone(sizes: dict[str, float], number: int) -> None:
    centre = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    drawn = drawn_shares(centre, number, seed=3)
    assert sum(drawn.values()) == pytest.approx(1) and all(share > 0 for share in drawn.values())
    assert drawn == drawn_shares(dict(reversed(centre.items())), number, seed=3)
    assert drawn != drawn_shares(centre, number + 1, seed=3)


def test_draws_are_centred_on_the_sizes() -> None:
    assert runs(600).mean(0) == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
