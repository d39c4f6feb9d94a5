"""Odds-ratio preference optimisation: fine-tuning and preference in one loss, without a reference model."""

import jax
import jax.numpy as jnp

from lifecycle.training.config import OrpoConfig
from lifecycle.training.objectives.likelihoods import PairLikelihoods
from lifecycle.training.objectives.preference import preference_metrics
from lifecycle.training.objectives.sums import Sums, sums_over


def orpo(settings: OrpoConfig, pairs: PairLikelihoods) -> Sums:
    """The chosen answers' loss plus the odds-ratio loss, per pair (Hong et al. 2024, "ORPO", equations 4 to 7).

    Log-probabilities are means per token, as in the paper; `beta` is its lambda.
    """
    means = pairs.mean_logprobs
    # log odds = log p - log(1 - p); the minimum keeps log1p finite if p rounds to 1
    odds = means - jnp.log1p(-jnp.exp(jnp.minimum(means, -1e-6)))
    margins = odds[..., 0] - odds[..., 1]
    losses = -means[..., 0] - settings.beta * jax.nn.log_sigmoid(margins)
    return sums_over(pairs.mask, losses, preference_metrics(pairs, margins))
