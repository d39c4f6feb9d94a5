"""Hidden states of few rows, cut by columns: each device multiplies its part of a weight by all devices' rows.

A mesh shards a weight's `d_model` over the axes that also divide a batch (ZeRO, stage 3). For a long batch each device
gathers the weight. A decode step has few rows. Then between a layer's products every device has its columns of all
rows, so that they meet its part of the weight where it is (Pope et al. 2022, "Efficiently Scaling Transformer
Inference", section 3.2.2, "2D weight-stationary"): products of hidden states are partial sums over `hidden`, those that
make hidden states have a device's columns. Attention and routed experts see a device's own rows. For 64 rows of Llama 3
70B on 16 chips of a v5e a 70th of the bytes move. What must hold: the devices of the axis have different rows.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, PyTree
from lifecycle.kernels.group_scaled import GroupScaled
from lifecycle.kernels.quantised import QuantisedWeight, is_widened
from lifecycle.parallel.collectives import all_to_all, axis_size

MOVED_SHARE = 4  # rows move while all devices' are at most `d_model` divided by this


def cuts_hidden(weights: PyTree, num_rows: int, d_model: int) -> bool:
    """Whether the hidden states of `num_rows` of each device should be cut, and not the weights gathered. A row's share
    of the bytes is that of its inputs and outputs in the weight's D x F.

    Never where rows are rounded, with one scale for each, or a scale's group of rows may be cut: then the sum over
    parts is not the weight's product."""
    num = axis_size("embed")
    if num == 1 or MOVED_SHARE * num_rows * num > d_model:
        return False
    leaves = jax.tree.leaves(weights, is_leaf=lambda leaf: isinstance(leaf, QuantisedWeight | GroupScaled))
    return all(
        is_widened(leaf) if isinstance(leaf, QuantisedWeight) else not isinstance(leaf, GroupScaled) for leaf in leaves
    )


# All-to-alls over a leading dimension: one that splits rows and joins columns the TPU compiler makes of reductions over
# a dimension of one, 193 k cycles for 64 x 4,096, where the product takes 75 k.


def to_columns(x: Float[Array, "B N D"]) -> Float[Array, "B _ _"]:
    """From all columns of this device's rows to this device's columns of all rows."""
    num = axis_size("hidden")
    if num == 1:
        return x
    columns = jnp.stack(jnp.split(x[0], num, 1))
    return all_to_all(columns, "hidden", 0, 0).reshape(1, -1, columns.shape[2])


def to_rows(x: Float[Array, "B _ _"]) -> Float[Array, "B N D"]:
    """The way back."""
    num = axis_size("hidden")
    if num == 1:
        return x
    pieces = x.reshape(num, -1, x.shape[2])
    return jnp.concatenate(list(all_to_all(pieces, "hidden", 0, 0)), 1)[None]
