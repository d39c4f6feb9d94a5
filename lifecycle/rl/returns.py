"""Generalised advantage estimation over the completions of a batch (Schulman et al. 2015, "High-Dimensional Continuous
Control Using Generalized Advantage Estimation", equation 16)."""

import numpy as np

from lifecycle.training.batches import HostBatch
from lifecycle.training.objectives.policy import ADVANTAGES, TOKEN_ADVANTAGES
from lifecycle.training.objectives.ppo import RETURNS, VALUES
from lifecycle.training.policy import ValueConfig

EPSILON = 1e-8


def with_returns(batch: HostBatch, value: ValueConfig, penalty: np.ndarray | None = None) -> HostBatch:
    """The batch with advantages and returns of each token, from its `values`; a completion's reward, in its column
    `advantages`, comes with its last token, and each token costs its `penalty` `[B, T]`. Advantages are normalised over
    the batch's tokens."""
    advantages, returns = np.zeros_like(batch[VALUES]), np.zeros_like(batch[VALUES])
    for row, place in np.argwhere(batch["group_mask"] > 0):
        where = (batch["segment_ids"][row] == place + 1) & (batch["loss_mask"][row] > 0)
        if where.any():
            values = batch[VALUES][row, where].astype(np.float64)
            rewards = np.zeros(len(values)) if penalty is None else -penalty[row, where].astype(np.float64)
            rewards[-1] += float(batch[ADVANTAGES][row, place, 0])
            estimated = _estimated(values, rewards, value)
            advantages[row, where], returns[row, where] = estimated, estimated + values
    learned = batch["loss_mask"] > 0
    if learned.any():
        advantages[learned] -= advantages[learned].mean()
        advantages[learned] /= advantages[learned].std() + EPSILON
    return batch | {TOKEN_ADVANTAGES: advantages, RETURNS: returns}


def _estimated(values: np.ndarray, rewards: np.ndarray, value: ValueConfig) -> np.ndarray:
    """A completion's advantages, float64, one for each token."""
    following = np.append(values[1:], 0.0)
    errors = rewards + value.gamma * following - values
    found, total = np.zeros(len(values)), 0.0
    for at in reversed(range(len(values))):
        total = errors[at] + value.gamma * value.lam * total
        found[at] = total
    return found
