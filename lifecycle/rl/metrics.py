"""What is told of a step's rollouts in numbers, under TRL's names."""

from collections.abc import Mapping

import numpy as np

from lifecycle.rl.advantages import has_spread
from lifecycle.rl.episodes import episode_metrics
from lifecycle.rl.rollouts import Scored


def metrics_of(scored: Scored, group_size: int) -> dict[str, float]:
    """A step's metrics: rewards, how many groups have no spread, and lengths; what reward functions logged, as
    `logged/NAME`. Single samples are compared with each other: then the batch is one group. What no completion has a
    value for is left out."""
    rewards = scored.rewards.reshape((-1, group_size) if group_size > 1 else (1, -1))
    lengths = np.array([sum(rollout.is_own) for rollout in scored.rollouts])
    is_scored = ~np.isnan(rewards)
    groups = [row[there] for row, there in zip(rewards, is_scored, strict=True) if there.any()]
    spread = [np.std(group, ddof=min(1, len(group) - 1)) for group in groups]
    found = {
        **means({"reward": rewards, "reward_std": np.array(spread)}),
        "frac_reward_zero_std": 1 - float(has_spread(rewards).mean()),
        "frac_unscored": 1 - float(is_scored.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([rollout.is_cut for rollout in scored.rollouts])),
        "generation_s": scored.generation_s,
        "reward_s": scored.reward_s,
        **scored.metrics,
    }
    found |= means({f"rewards/{name}/mean": np.array(values) for name, values in scored.scores.values.items()})
    found |= episode_metrics(scored.rollouts)
    for name, reasons in scored.scores.faults.items():
        found[f"rewards/{name}/faults"] = float(sum(reasons.values()))
    return found | {f"logged/{name}": float(value) for name, value in scored.scores.metrics.items()}


def means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The means of the values that are there, of columns that have some."""
    there = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {name: float(values.mean()) for name, values in there.items() if len(values)}
