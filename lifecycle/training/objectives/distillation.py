"""Distillation: the student learns the teacher's distribution at each token that a row's mask selects."""

from collections.abc import Mapping

import jax

from lifecycle.core.typing import Array
from lifecycle.kernels.divergence import Divergence
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def distillation(config: DistillationConfig, tokens: TokenLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The generalised Jensen-Shannon divergence in nats, per token (Agarwal et al. 2024, "On-Policy Distillation of
    Language Models", equation 1), plus the targets' negative log-likelihood if it has a weight. Logged, as TRL does:
    `entropy`, of the student's distribution at the temperature; `nll_loss` if that has a weight."""
    loss, entropy = tokens.divergence(Divergence(config.beta, config.temperature, config.shared_ids))
    metrics = {"entropy": entropy}
    if config.sft_weight:
        nll = tokens.nll(tokens.mask)
        loss, metrics["nll_loss"] = loss + config.sft_weight * nll, jax.lax.stop_gradient(nll)
    return Sums(loss, tokens.mask.sum(), metrics=metrics)
