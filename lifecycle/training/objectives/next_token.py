"""Next-token prediction: pre-training, on every token, and SFT, on the assistant's tokens by `loss_mask`."""

from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def next_token(_: TrainConfig, tokens: TokenLikelihoods) -> Sums:
    """The negative log-likelihood of the masked-in tokens in nats, per token (Bengio et al. 2003, "A Neural
    Probabilistic Language Model", section 2)."""
    return Sums(tokens.nll(tokens.mask), tokens.mask.sum())
