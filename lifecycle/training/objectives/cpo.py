"""Contrastive preference optimisation and SimPO: preferences without a reference model."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.preference import in_units_of_pairs, pair_metrics
from lifecycle.training.objectives.sums import Sums, sums_over
from lifecycle.training.preference import CpoConfig

PER_TOKEN = ("simpo", "ipo")  # losses of log-probabilities per token


def cpo(settings: CpoConfig, pairs: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The preference loss per pair plus the chosen answers' negative log-likelihood per token (Xu et al. 2024,
    "Contrastive Preference Optimization", equations 3 to 6)."""
    logps = pairs.mean_logprobs if settings.loss in PER_TOKEN else pairs.logprobs
    rewards = _rewards(settings, logps)
    losses = _losses(settings, rewards[..., 0] - rewards[..., 1])
    metrics = pair_metrics(pairs, settings.beta * rewards, logps)
    nll = jnp.zeros_like(losses)  # as TRL logs it where it has no weight
    if settings.sft_weight:
        nll = in_units_of_pairs(-pairs.logprobs[..., 0], context, "answer_tokens")
    metrics["nll_loss"] = nll
    return sums_over(pairs.mask, losses + settings.sft_weight * nll, metrics)


def _rewards(settings: CpoConfig, logps: Float[Array, "B P 2"]) -> Float[Array, "B P 2"]:
    """Log-probabilities, or AlphaPO's `(1 - p^-alpha) / alpha` (Gupta et al. 2025, "AlphaPO", equation 6)."""
    if not settings.alpha:
        return logps
    return -jnp.expm1(jnp.minimum(-settings.alpha * logps, 80.0)) / settings.alpha


def _losses(settings: CpoConfig, difference: Float[Array, "B P"]) -> Float[Array, "B P"]:
    match settings.loss:
        case "hinge":
            return jax.nn.relu(1 - settings.beta * difference)
        case "ipo":
            return (difference - 1 / (2 * settings.beta)) ** 2
        case _:  # SimPO's margin is Meng et al. 2024, "SimPO", equation 6
            margin = settings.beta * difference - (settings.gamma if settings.loss == "simpo" else 0.0)
            flipped = settings.label_smoothing * jax.nn.log_sigmoid(-margin)
            return -(1 - settings.label_smoothing) * jax.nn.log_sigmoid(margin) - flipped
