"""Distillation: the student learns the teacher's distribution at each token that a row's mask selects."""

from collections.abc import Mapping

import jax

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.divergence import Divergence
from lifecycle.kernels.few_ids import few_ids_divergence
from lifecycle.training.distilling import DistillationConfig, DivergenceConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS


def distillation(config: DivergenceConfig, tokens: TokenLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The generalised Jensen-Shannon divergence in nats, per token (Agarwal et al. 2024, "On-Policy Distillation of
    Language Models", equation 1), over all ids or the teacher's likeliest, plus the targets' negative log-likelihood if
    it has a weight. Logged, as TRL does: `entropy`, of the student's distribution at the temperature, where the whole
    of it is computed; `nll_loss` if that has a weight."""
    if config.num_told is None:
        num_ids = config.shared_ids if isinstance(config, DistillationConfig) else None
        loss, entropy = tokens.divergence(Divergence(config.beta, config.temperature, num_ids))
        metrics = {"entropy": entropy}
    else:
        loss, metrics = _over_few(config, tokens)
    if config.sft_weight:
        nll = tokens.nll(tokens.mask)
        loss, metrics["nll_loss"] = loss + config.sft_weight * nll, jax.lax.stop_gradient(nll)
    return Sums(loss, tokens.mask.sum(), metrics=metrics)


def _over_few(
    config: DivergenceConfig, tokens: TokenLikelihoods
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The divergence over the teacher's likeliest ids, which the rows have. Normalised over them, it needs no other
    logits."""
    ids, log_p = tokens.column(TEACHER_IDS), tokens.column(TEACHER_LOGPROBS)
    if config.loss_add_tail:
        log_q, entropies = tokens.logprobs_of(ids, config.temperature)
        metrics = {"entropy": (entropies * tokens.mask).sum()}
    else:
        log_q, metrics = tokens.logits_of(ids) / config.temperature, {}
    values = few_ids_divergence(log_q, log_p, ids >= 0, config.beta, config.loss_add_tail)
    return (values * tokens.mask).sum(), metrics
