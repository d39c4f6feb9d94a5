"""What is told of a step's rollouts in numbers, under TRL's names."""

from collections.abc import Mapping, Sequence

import numpy as np

from lifecycle.rl.advantages import has_spread
from lifecycle.rl.episodes import episode_metrics
from lifecycle.rl.rollouts import Rollout, Scored


def metrics_of(scored: Scored, group_size: int) -> dict[str, float]:
    """A step's metrics: rewards, how many groups have no spread, and lengths; what reward functions logged, as
    `logged/NAME`. Single samples are compared with each other: then the batch is one group. What no completion has a
    value for is left out."""
    rewards = scored.rewards.reshape((-1, group_size) if group_size > 1 else (1, -1))
    values = {name: np.array(each, np.float64) for name, each in scored.scores.values.items()}
    found = {
        **means({"reward": rewards} | {f"rewards/{name}/mean": each for name, each in values.items()}),
        **deviations({"reward_std": rewards} | {f"rewards/{name}/std": each for name, each in values.items()}),
        **means({"reward_std_in_groups": np.array([*deviations(dict(enumerate(rewards))).values()])}),
        "frac_reward_zero_std": 1 - float(has_spread(rewards).mean()),
        "frac_unscored": float(np.isnan(rewards).mean()),
        **_lengths(scored.rollouts),
        "generation_s": scored.generation_s,
        "reward_s": scored.reward_s,
        **scored.metrics,
    }
    found |= episode_metrics(scored.rollouts)
    for name, reasons in scored.scores.faults.items():
        found[f"rewards/{name}/faults"] = float(sum(reasons.values()))
    return found | {f"logged/{name}": float(value) for name, value in scored.scores.metrics.items()}


def _lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """In tokens, of all completions and of those that ended by themselves; as in TRL, 0 if none did."""
    lengths = np.array([sum(rollout.is_own) for rollout in rollouts])
    is_cut = np.array([rollout.is_cut for rollout in rollouts])
    found = {"completions/clipped_ratio": float(is_cut.mean())}
    for name, of in (("length", lengths), ("terminated_length", lengths[~is_cut] if not is_cut.all() else np.zeros(1))):
        each = {"mean": of.mean(), "min": of.min(), "max": of.max()}
        found |= {f"completions/{which}_{name}": float(value) for which, value in each.items()}
    return found


def deviations[K](columns: Mapping[K, np.ndarray]) -> dict[K, float]:
    """The standard deviations, of a sample, of the values that are there, of columns that have two or more."""
    there = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {name: float(values.std(ddof=1)) for name, values in there.items() if len(values) > 1}


def means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The means of the values that are there, of columns that have some."""
    there = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {name: float(values.mean()) for name, values in there.items() if len(values)}
