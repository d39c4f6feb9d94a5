"""What objectives over preference pairs share: their counts over a batch, and metrics under TRL's names.

| metric | mean over |
|---|---|
| `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies` | pairs; a tie is no hit |
| `likelihood_accuracy`: the model's own preference, by log-probabilities per token | pairs |
| `logps/chosen`, `logps/rejected` | pairs |
| `logits/chosen`, `logits/rejected` | the answers' tokens, and the vocabulary |
| `entropy` | all answers' tokens, nats |
| `mean_token_accuracy` | the chosen answers' tokens |
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import GroupLikelihoods


def counts(settings: TrainConfig, pairs: GroupLikelihoods) -> dict[str, Array]:
    """The context of losses that add a mean over tokens to one over pairs: the batch's `pairs`; the `answer_tokens` of
    chosen answers, and their `tokens` with those of the prompts."""
    with_prompts = pairs.per_segment(pairs.column("target_mask"))
    is_pair = pairs.mask
    return {
        "pairs": is_pair.sum(),
        "answer_tokens": (pairs.lengths[..., 0] * is_pair).sum(),
        "tokens": (with_prompts[..., 0] * is_pair).sum(),
    }


def in_units_of_pairs(totals: Float[Array, "B P"], context: Mapping[str, Array], unit: str) -> Float[Array, "B P"]:
    """Sums over tokens, so that their mean over the batch's pairs is the mean over its tokens."""
    return totals * context["pairs"] / jnp.maximum(context[unit], 1)


def pair_metrics(
    pairs: GroupLikelihoods, rewards: Float[Array, "B P 2"], logps: Float[Array, "B P 2"]
) -> dict[str, Any]:
    """The metrics; `rewards` and `logps` as the objective defines them."""
    found, learned, lengths, means = pairs.statistics, pairs.learned, pairs.lengths, pairs.mean_logprobs
    logits = pairs.per_segment(found.mean_logits * learned)
    entropies = pairs.per_segment(found.entropies * learned)
    right = pairs.per_segment(found.is_top1 * learned)[..., 0]
    return {
        "rewards/chosen": rewards[..., 0],
        "rewards/rejected": rewards[..., 1],
        "rewards/margins": rewards[..., 0] - rewards[..., 1],
        "rewards/accuracies": (rewards[..., 0] > rewards[..., 1]).astype(jnp.float32),
        "likelihood_accuracy": (means[..., 0] > means[..., 1]).astype(jnp.float32),
        "logps/chosen": logps[..., 0],
        "logps/rejected": logps[..., 1],
        "logits/chosen": (logits[..., 0], lengths[..., 0]),
        "logits/rejected": (logits[..., 1], lengths[..., 1]),
        "entropy": (entropies.sum(-1), lengths.sum(-1)),
        "mean_token_accuracy": (right, lengths[..., 0]),
    }
