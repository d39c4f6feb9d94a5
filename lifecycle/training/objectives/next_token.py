"""Next-token prediction on every token: pre-training."""

from collections.abc import Mapping

from lifecycle.core.typing import Array
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def next_token(config: NextTokenConfig, tokens: TokenLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The negative log-likelihood of the masked-in tokens in nats, per token (Bengio et al. 2003, "A Neural
    Probabilistic Language Model", section 2), plus the z-loss if it has a weight."""
    return Sums(tokens.nll(tokens.mask, config.z_weight), tokens.mask.sum())
