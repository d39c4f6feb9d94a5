"""Next-token prediction: pre-training, on every token, and SFT, on the assistant's tokens by `loss_mask`."""

from lifecycle.training.config import NextTokenConfig, SftConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def next_token(config: NextTokenConfig | SftConfig, tokens: TokenLikelihoods) -> Sums:
    """The negative log-likelihood of the masked-in tokens in nats, per token (Bengio et al. 2003, "A Neural
    Probabilistic Language Model", section 2), plus the z-loss if it has a weight."""
    return Sums(tokens.nll(tokens.mask, config.z_weight), tokens.mask.sum())
