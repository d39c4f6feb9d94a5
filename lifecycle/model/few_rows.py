"""Experts for few tokens: each device gives all of its experts all of the tokens, and weights what was not chosen by 0.

A decode step reads every expert whatever its tokens choose, if these are many enough to need all; what the products
cost beside that reading is nothing until about 200 rows (a v5e: 197e12 / 819e9 FLOPs a byte). Nothing is sorted, and in
place of rows sent to their experts' devices all of them are gathered: 64 rows of 4,096 dimensions are 0.5 MB in
bfloat16. What must hold: no row's result depends on another's, and experts that a row has not chosen add zeros.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.activation import Activation, gated
from lifecycle.kernels.group_scaled import GroupScaled
from lifecycle.kernels.grouped_linear import GroupWeights
from lifecycle.kernels.quantised import QuantisedWeight
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, reduce_scatter

MOST_ROWS = 256  # of all devices that share the experts


def is_few(num_rows: int) -> bool:
    """Whether a device's `num_rows` are few enough. Never on CPUs, which products bind and not reading."""
    return platform() != "cpu" and num_rows * axis_size("experts") <= MOST_ROWS


def by_all_experts(
    activation: Activation,
    x: Float[Array, "N D"],
    experts: Int[Array, "N k"],
    row_weights: Float[Array, "N k"],
    weights: Mapping[str, GroupWeights],
) -> Float[Array, "N D"]:
    """The weighted sum of each row's experts, without the last bias; a partial sum over `mlp`, as `of_experts` is. An
    id that is no expert's adds nothing."""
    rows, ids, shares = (all_gather(array, "experts", 0) for array in (x, experts, row_weights))
    num_here = jax.tree.leaves(weights["gate"])[0].shape[0]
    here = axis_index("experts") * num_here + jnp.arange(num_here)
    of_expert = jnp.where(ids == here[:, None, None], shares, 0.0).sum(-1)  # [X, N]
    gate, up = (_product(rows, weights[name], weights.get(f"{name}_bias")) for name in ("gate", "up"))
    hidden = gated(gate, up, activation).astype(jnp.float32) * of_expert[..., None]
    outs = _product(hidden.astype(x.dtype), weights["down"], None)
    # not by the weight of 0 alone: an expert that is not finite would reach those that have not chosen it
    out = jnp.where(of_expert[..., None] != 0, outs, 0).sum(0, dtype=jnp.float32)
    return reduce_scatter(out.astype(x.dtype), "experts", 0)


def _values(weight: GroupWeights, dtype: Any) -> Float[Array, "X D F"]:
    """What rows are multiplied by; of 8 bits, without the columns' scales."""
    if isinstance(weight, GroupScaled):
        return weight.dense(dtype)
    return (weight.values if isinstance(weight, QuantisedWeight) else weight).astype(dtype)


def _product(x: Float[Array, "... N D"], weight: GroupWeights, bias: Any) -> Float[Array, "X N F"]:
    """Rows, or each expert's own, times every expert's matrix, in `x`'s dtype. Values of 8 bits are widened."""
    values = _values(weight, x.dtype)
    x = jnp.broadcast_to(x, (values.shape[0], *x.shape[-2:]))
    out = jax.lax.dot_general(x, values, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    if isinstance(weight, QuantisedWeight):
        out *= weight.scale
    return (out if bias is None else out + bias[:, None].astype(out.dtype)).astype(x.dtype)
