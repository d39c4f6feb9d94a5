"""Advantages of completions from their rewards, by the names that TRL and verl use.

Each is a function of rewards `[prompts, samples]` to advantages of that shape. A completion whose reward is NaN (no
reward says anything of it) is in no mean, and its advantage is 0.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np

EPSILON = 1e-4  # added to standard deviations, as TRL does

type Rewards = np.ndarray  # [prompts, samples], float64


def grpo(rewards: Rewards) -> np.ndarray:
    """Less the group's mean, by its standard deviation (Shao et al. 2024, "DeepSeekMath", section 4.1.2)."""
    return _centred(rewards) / (_deviation(rewards, axis=1) + EPSILON)


def grpo_batch(rewards: Rewards) -> np.ndarray:
    """Less the group's mean, by the batch's standard deviation (Hu et al. 2025, "REINFORCE++", section 3.2; TRL's
    `scale_rewards: batch`)."""
    return _centred(rewards) / (_deviation(rewards, axis=None) + EPSILON)


def dr_grpo(rewards: Rewards) -> np.ndarray:
    """Less the group's mean (Liu et al. 2025, "Understanding R1-Zero-Like Training", equation 3; TRL's `scale_rewards:
    none`)."""
    return _centred(rewards)


def rloo(rewards: Rewards) -> np.ndarray:
    """Less the mean of the group's other rewards (Ahmadian et al. 2024, "Back to Basics", equation 8)."""
    is_there = ~np.isnan(rewards)
    num, total = is_there.sum(1, keepdims=True), np.nansum(rewards, 1, keepdims=True)
    others = (total - rewards) / np.maximum(num - 1, 1)
    return np.where(num > 1, rewards - others, 0.0)


def reinforce_plus_plus(rewards: Rewards) -> np.ndarray:
    """Less the batch's mean, by its standard deviation (Hu et al. 2025, "REINFORCE++", equation 8)."""
    return (rewards - _mean(rewards, axis=None)) / (_deviation(rewards, axis=None) + EPSILON)


def reinforce_plus_plus_baseline(rewards: Rewards) -> np.ndarray:
    """Less the group's mean, then normalised over the batch (the same paper, section 3.2)."""
    return reinforce_plus_plus(_centred(rewards))


ADVANTAGES: Mapping[str, Callable[[Rewards], np.ndarray]] = {
    "grpo": grpo,
    "grpo_batch": grpo_batch,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
}


def advantages(name: str, rewards: Rewards) -> np.ndarray:
    """The advantages of a name, 0 where there is no reward."""
    return np.nan_to_num(ADVANTAGES[name](rewards), nan=0.0)


def has_spread(rewards: Rewards) -> np.ndarray:
    """`[prompts]`: whether a prompt's rewards differ, so that something is learned of it."""
    return ~np.isclose(_deviation(rewards, axis=1)[:, 0], 0)


def _mean(values: np.ndarray, axis: int | None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a group without any reward: NaN
        return np.nanmean(values, axis=axis, keepdims=True)


def _centred(rewards: Rewards) -> np.ndarray:
    return rewards - _mean(rewards, axis=1)


def _deviation(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Of a sample; 0 of a single value."""
    num = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    squares = np.nansum((values - _mean(values, axis)) ** 2, axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(num - 1, 1))
