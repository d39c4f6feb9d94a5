"""Sorting over a batch, of which each micro-batch and device has a part: for AOT's losses.

The batch's values are the context, so every part knows every rank. A sorted value's partner is then a constant, and its
gradient stays with its own pair; where both partners have a gradient, each pair gives its own share. What must hold:
the losses and gradients are those of the whole batch, however it is cut.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.training.objectives.likelihoods import GroupLikelihoods


def values_of_batch(
    num_rows: int, pairs: GroupLikelihoods, logps: Float[Array, "B P 2"], reference: Float[Array, "B P 2"]
) -> dict[str, Array]:
    """This part's log-probabilities at its places in arrays of the whole batch `[num_rows, P, 2]`; zero elsewhere."""
    rows, shape = pairs.column("row"), (num_rows, *logps.shape[1:])
    values = {"logps": logps, "reference": reference, "is_pair": jnp.broadcast_to(pairs.mask[..., None], logps.shape)}
    return {name: jnp.zeros(shape, jnp.float32).at[rows].set(value) for name, value in values.items()}


def delta_of(
    pairs: GroupLikelihoods,
    context: Mapping[str, Array],
    chosen: Float[Array, "B P"],
    rejected: Float[Array, "B P"],
    is_paired: bool,
) -> tuple[Float[Array, "B P"], ...]:
    """Differences of partners in sorted order, each with the gradient of one of them. `chosen` and `rejected` are the
    pairs' log ratios.

    Paired: the policy's gains of chosen over rejected answers against the reference's gains. Else: the chosen answers'
    log ratios against the rejected ones'.
    """
    logps, reference = context["logps"], context["reference"]
    is_pair = context["is_pair"][..., 0] > 0
    own, columns = pairs.column("row"), is_pair.shape
    if is_paired:
        policy, of_reference = (x[..., 0] - x[..., 1] for x in (logps, reference))
        partners = _partners(policy, of_reference, is_pair).reshape(columns)[own]
        return (chosen - rejected + of_reference[own] - partners,)
    ratios = logps - reference
    of_chosen = _partners(ratios[..., 0], ratios[..., 1], is_pair).reshape(columns)[own]
    of_rejected = _partners(ratios[..., 1], ratios[..., 0], is_pair).reshape(columns)[own]
    return chosen - of_chosen, of_rejected - rejected


def _partners(values: Float[Array, "R P"], others: Float[Array, "R P"], is_pair: Array) -> Array:
    """For each of `values`, flattened, the one of `others` with its place in sorted order; padding comes last."""
    last = jnp.inf
    order = jnp.argsort(jnp.where(is_pair, values, last).reshape(-1), stable=True)
    places = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    ordered = jnp.sort(jnp.where(is_pair, others, last).reshape(-1))
    return jnp.where(is_pair.reshape(-1), ordered[places], 0.0)
