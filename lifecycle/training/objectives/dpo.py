"""Direct preference optimisation: the policy's gain over a reference, on chosen answers against rejected ones."""

import jax

from lifecycle.training.config import DpoConfig
from lifecycle.training.objectives.likelihoods import PairLikelihoods
from lifecycle.training.objectives.preference import preference_metrics
from lifecycle.training.objectives.sums import Sums, sums_over


def dpo(settings: DpoConfig, pairs: PairLikelihoods) -> Sums:
    """The sigmoid loss per pair (Rafailov et al. 2023, "Direct Preference Optimization", equation 7).

    With `sft_weight`, the chosen answers' mean loss is added (Pang et al. 2024, "Iterative Reasoning Preference
    Optimization", equation 1).
    """
    rewards = settings.beta * (pairs.logprobs - pairs.ref_logprobs)
    margins = rewards[..., 0] - rewards[..., 1]
    losses = -jax.nn.log_sigmoid(margins) - settings.sft_weight * pairs.mean_logprobs[..., 0]
    metrics = preference_metrics(pairs, margins)
    metrics |= {"rewards_chosen": rewards[..., 0], "rewards_rejected": rewards[..., 1]}
    return sums_over(pairs.mask, losses, metrics)
