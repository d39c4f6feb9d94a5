"""Proximal policy optimisation with a value function: a score at each token that foretells the rewards to come.

Beside the columns of `objectives/policy.py`, per token: `values` as they were when the completions were sampled, and
`returns`, which they should have been.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.parallel.columns import declare
from lifecycle.training.objectives.likelihoods import GroupLikelihoods
from lifecycle.training.objectives.policy import aggregated, policy_gradient
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.policy import ValueConfig

VALUES, RETURNS = "values", "returns"
declare("token", VALUES, RETURNS)


def ppo(settings: Any, completions: GroupLikelihoods, context: Mapping[str, Array]) -> Sums:
    """The policy's loss plus the value function's: half the squared error, of which the larger counts of the value and
    the value clipped round its old one (Schulman et al. 2017, "Proximal Policy Optimization", equation 9; the clip as
    in OpenAI's baselines). A mean over tokens."""
    value: ValueConfig = settings.value
    sums = policy_gradient(settings, completions, context)
    found, old, returns = completions.tokens.scores(), completions.column(VALUES), completions.column(RETURNS)
    clipped = jnp.clip(found, old - value.clip, old + value.clip)
    errors = 0.5 * jnp.maximum((found - returns) ** 2, (clipped - returns) ** 2)
    per_segment = aggregated(settings, "token-mean", completions, errors, context)
    loss = (per_segment * completions.mask).sum()
    metrics = sums.metrics | {"value_loss": jax.lax.stop_gradient(loss)}
    return replace(sums, loss=sums.loss + value.weight * loss, metrics=metrics)
