"""Kahneman-Tversky optimisation: answers that are labelled good or bad, without pairs.

How far the policy has moved from the reference is estimated by answers beside prompts that they do not belong to, over
the whole batch, and has no gradient.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.sums import Sums, sums_over
from lifecycle.training.preference import KtoConfig


def kto(settings: KtoConfig, answers: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The value function's loss per answer (Ethayarajh et al. 2024, "KTO", equations 7 and 8), or the loss of APO-zero
    for single answers (D'Oosterlinck et al. 2024, "Anchored Preference Optimization", equation 7)."""
    is_good = answers.column("label")[..., 0]
    logps = answers.logprobs[..., 0]
    rewards = settings.beta * (logps - answers.ref_logprobs()[..., 0])
    divergence = jnp.zeros(())
    if settings.loss == "kto":
        divergence = jnp.maximum(context["divergence"] / jnp.maximum(context["answers"], 1), 0.0)
    gain = rewards - settings.beta * divergence
    losses = jnp.where(
        is_good > 0,
        settings.desirable_weight * jax.nn.sigmoid(-gain),
        settings.undesirable_weight * jax.nn.sigmoid(gain),
    )
    metrics = _metrics(answers, rewards, logps, context) | {"kl": jnp.broadcast_to(divergence, rewards.shape)}
    return sums_over(answers.mask, losses, metrics)


def of_batch(settings: KtoConfig, answers: GroupLikelihoods) -> dict[str, Array]:
    """The context: how many answers there are and how many of them are good; the sum of the mismatched answers' log
    ratios."""
    is_good = answers.column("label")[..., 0]
    context = {"answers": answers.mask.sum(), "good": (is_good * answers.mask).sum()}
    if settings.has_others:
        ratios = answers.others.logprobs - answers.others.ref_logprobs()
        context["divergence"] = (ratios[..., 0] * answers.mask).sum()
    return context


def _metrics(
    answers: GroupLikelihoods, rewards: Float[Array, "B P"], logps: Float[Array, "B P"], context: Mapping[str, Array]
) -> dict[str, Any]:
    """TRL's names; each of the answers with that label, and the difference of the means of both. There is nothing of a
    label that a batch has none of."""
    found, learned, lengths = answers.statistics, answers.learned, answers.lengths[..., 0]
    logits = answers.per_segment(found.mean_logits * learned)[..., 0]
    good = answers.column("label")[..., 0]
    num, num_good = context["answers"], context["good"]
    has_both = (num_good > 0) & (num_good < num)
    difference = rewards * (good / jnp.maximum(num_good, 1) - (1 - good) / jnp.maximum(num - num_good, 1))
    metrics: dict[str, Any] = {
        "entropy": (answers.per_segment(found.entropies * learned)[..., 0], lengths),
        "rewards/margins": (difference, jnp.full_like(rewards, has_both / jnp.maximum(num, 1))),
    }
    for name, is_one in (("chosen", good), ("rejected", 1 - good)):
        metrics[f"rewards/{name}"] = (rewards * is_one, is_one)
        metrics[f"logps/{name}"] = (logps * is_one, is_one)
        metrics[f"logits/{name}"] = (logits * is_one, lengths * is_one)
    return metrics
