"""Reward models: a number for an answer, learned from which of two answers people prefer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.parallel.columns import declare
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.sums import Sums, largest_of, smallest_of, sums_over
from lifecycle.training.preference import RewardModelConfig

MARGIN = "margin"  # a column: by how much a pair's chosen answer should be ahead
declare("segment", MARGIN)


def reward_model(settings: RewardModelConfig, pairs: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The Bradley-Terry loss per pair (Ouyang et al. 2022, "Training language models to follow instructions", equation
    1), less a margin if rows have one (Touvron et al. 2023, "Llama 2", section 3.2.2); `centre` keeps the sum of a
    pair's rewards near 0 (Eisenstein et al. 2023, "Helping or Herding?", section 4). A reward is that of the answer's
    last token. Metrics under TRL's names."""
    found = rewards(pairs)
    ahead = found[..., 0] - found[..., 1]
    margin = pairs.column(MARGIN)[..., 0] if MARGIN in pairs.batch else 0.0
    losses = -jax.nn.log_sigmoid(ahead - margin) + settings.centre * found.sum(-1) ** 2
    metrics: dict[str, Any] = {
        "accuracy": (ahead > 0).astype(jnp.float32),
        "margin": ahead,
        "mean_reward": found.mean(-1),
    }
    seen, is_there = jax.lax.stop_gradient(found), jnp.broadcast_to(pairs.mask[..., None], found.shape)
    return replace(
        sums_over(pairs.mask, losses, metrics),
        largest={"max_reward": largest_of(seen, is_there)},
        smallest={"min_reward": smallest_of(seen, is_there)},
    )


def rewards(groups: GroupLikelihoods) -> Float[Array, "B P k"]:
    """Each segment's reward: the score of its last token."""
    is_last = (groups.column("segment_ids") > 0) & (groups.column("target_mask") == 0)
    return groups.per_segment(groups.tokens.scores() * is_last)
