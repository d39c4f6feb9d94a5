"""The metrics that every preference objective logs."""

from typing import Any

import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import PairLikelihoods


def preference_metrics(pairs: PairLikelihoods, margins: Float[Array, "B P"]) -> dict[str, Any]:
    """Metrics per pair.

    `accuracy` is the share of pairs with a positive margin; DPO's is relative to the reference, so 0.5 before training.
    `likelihood_accuracy` compares mean log-probabilities per token: the model's own preference.
    """
    means = pairs.mean_logprobs
    return {
        "margins": margins,
        "accuracy": _is_ahead(margins),
        "likelihood_accuracy": _is_ahead(means[..., 0] - means[..., 1]),
        "logprobs_chosen": pairs.logprobs[..., 0],
        "logprobs_rejected": pairs.logprobs[..., 1],
    }


def _is_ahead(difference: Float[Array, "B P"]) -> Float[Array, "B P"]:
    """1 if positive, 0 if negative, 1/2 for a tie."""
    return (jnp.sign(difference) + 1) / 2
