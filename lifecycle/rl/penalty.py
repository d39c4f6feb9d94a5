"""The divergence from the stage's initial model as a part of the rewards, as RLOO and the first PPO for language models
have it (Ahmadian et al. 2024, "Back to Basics", equation 2); elsewhere it is a part of the loss."""

import jax.numpy as jnp
import numpy as np

from lifecycle.training.batches import HostBatch
from lifecycle.training.objectives.policy import REFERENCE, SAMPLER, estimated_divergence
from lifecycle.training.policy import PolicyConfig


def divergences(batch: HostBatch, settings: PolicyConfig) -> np.ndarray:
    """`[B, T]`, an estimate at each learned token, 0 elsewhere: of the policy that drew it from the initial model."""
    gap = batch[REFERENCE] - batch[SAMPLER]
    return np.asarray(estimated_divergence(settings.kl, jnp.asarray(gap)), np.float32) * batch["loss_mask"]


def per_completion(batch: HostBatch, values: np.ndarray, num: int) -> np.ndarray:
    """`[num]`, float64: the sums of `values` `[B, T]` over completions, by their numbers in `group_ids`."""
    learned = batch["loss_mask"] > 0
    numbers = np.take_along_axis(batch["group_ids"], np.maximum(batch["segment_ids"] - 1, 0), axis=1)
    return np.bincount(numbers[learned], values[learned], minlength=num)
