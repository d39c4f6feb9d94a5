"""Next-token prediction: pre-training, where every token counts, and SFT, where the mask leaves the assistant's."""

from lifecycle.training.config import CrossEntropyConfig
from lifecycle.training.objectives.likelihoods import TokenLikelihoods
from lifecycle.training.objectives.sums import Sums


def next_token(settings: CrossEntropyConfig, tokens: TokenLikelihoods) -> Sums:
    """The negative log-likelihood of the learned tokens in nats, per token (Bengio et al. 2003, "A Neural Probabilistic
    Language Model", section 2)."""
    return Sums(tokens.nll(tokens.mask, settings.loss_chunks), tokens.mask.sum())
