"""Fine-tuning on the tokens that a row's mask selects."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def sft(config: SftConfig, tokens: TokenLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The negative log-likelihood of the masked-in tokens in nats, per token, plus the z-loss if it has a weight; or
    dynamic fine-tuning's (Wu et al. 2025, "On the Generalization of SFT", equation 9): tokens count by their
    probability. Logged, as TRL does: `entropy` (nats) and `mean_token_accuracy`, per token."""
    if config.loss == "nll":
        loss, entropy, right = tokens.nll_and_metrics(config.z_weight)
    else:
        found, mask = tokens.statistics(), tokens.mask
        weights = mask * jax.lax.stop_gradient(jnp.exp(found.logprobs))
        loss = -(found.logprobs * weights).sum()
        entropy, right = jax.lax.stop_gradient(((found.entropies * mask).sum(), (found.is_top1 * mask).sum()))
    return Sums(loss, tokens.mask.sum(), metrics={"entropy": entropy, "mean_token_accuracy": right})
