"""The loss law recovered from losses that follow a known one, and how often its intervals hold."""

from dataclasses import replace

import numpy as np
import pytest

from lifecycle.planning.loss_law import FEWEST_RUNS, RATIOS, LossLaw, Trained, fit_law, power_law, predict

PUBLISHED = LossLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658)  # Besiroglu et al. 2024, "Chinchilla Scaling", table 1
TARGET = 88_080_384.0, 20 * 88_080_384.0  # twelve layers of width 768 and a head of 4,096 words


def ladder(law: LossLaw, noise: float = 0.0, seed: int = 0) -> list[Trained]:
    draw, runs = np.random.default_rng(seed), []
    for depth in (2, 3, 4, 6):
        params = 12 * depth * (64 * depth) ** 2 + 4096 * 64 * depth
        for tokens in (5 * params, 10 * params, 20 * params):
            runs.append(Trained(params, tokens, law.loss(params, tokens) * np.exp(noise * draw.normal())))
    return runs


@pytest.mark.parametrize("law", [PUBLISHED, LossLaw(0.6, 20.0, 0.25, 300.0, 0.4)])
def test_losses_of_a_law_give_the_law(law: LossLaw) -> None:
    found = fit_law(ladder(law))
    for name in ("irreducible", "a", "alpha", "b", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-3)
    assert found.loss(*TARGET) == pytest.approx(law.loss(*TARGET), rel=1e-6)


def test_one_failed_run_does_not_move_the_law() -> None:
    runs = ladder(PUBLISHED)
    runs[4] = Trained(runs[4].params, runs[4].tokens, 1.2 * runs[4].loss)
    assert fit_law(runs).loss(*TARGET) == pytest.approx(PUBLISHED.loss(*TARGET), rel=2e-3)


def test_intervals_hold_as_often_as_they_say_and_grow_with_the_scatter() -> None:
    """Eight ladders whose losses scatter by 0.3 %, like those of runs with other seeds; 90 % of targets are inside."""
    inside, widths = 0, []
    for seed in range(8):
        known = predict(ladder(PUBLISHED, 3e-3, seed), *TARGET, draws=20).loss
        measured = PUBLISHED.loss(*TARGET) * np.exp(3e-3 * np.random.default_rng(100 + seed).normal())
        inside += known.holds(measured)
        widths.append(known.high / known.low - 1)
    calm = predict(ladder(PUBLISHED, 3e-4), *TARGET, draws=20).loss
    assert inside >= 6
    assert 0.01 < np.median(widths) < 0.2 and calm.high / calm.low - 1 < np.median(widths) / 3


def test_the_best_size_is_the_lowest_point_at_equal_flops() -> None:
    flops = 6 * TARGET[0] * TARGET[1]
    params = np.geomspace(1e6, 1e10, 4001)
    losses = [PUBLISHED.loss(n, flops / 6 / n) for n in params]
    assert PUBLISHED.best_params(flops) == pytest.approx(params[int(np.argmin(losses))], rel=0.01)
    best = PUBLISHED.best_params(flops)
    assert PUBLISHED.best_ratio(flops) == pytest.approx(flops / 6 / best / best)
    without = replace(PUBLISHED, a=0.0), replace(PUBLISHED, b=0.0), replace(PUBLISHED, a=5e-324, alpha=1.5, beta=0.05)
    assert [law.best_ratio(flops) for law in without] == pytest.approx([RATIOS[1], RATIOS[0], RATIOS[1]])


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match=f"6 runs cannot hold a law of 5 parameters; train {FEWEST_RUNS} or more"):
        fit_law(ladder(PUBLISHED)[:6])


def test_a_cost_that_is_a_power_of_the_flops_goes_on() -> None:
    flops = np.geomspace(1e12, 1e15, 8)
    costs = 3e-9 * flops**0.9
    exact = power_law(flops.tolist(), costs.tolist(), 1e18)
    assert exact.value == pytest.approx(3e-9 * 1e18**0.9) and exact.high == pytest.approx(exact.low)
    costs *= np.exp(0.1 * np.random.default_rng(0).normal(size=8))
    scattered = power_law(flops.tolist(), costs.tolist(), 1e18)
    assert scattered.holds(3e-9 * 1e18**0.9) and scattered.high > 1.1 * scattered.value
