"""Products with weights of which each device keeps a part: rows of activations move instead of weights.

A mesh shards a weight's rows or columns over the axes that also divide a batch (ZeRO, stage 3). For a long batch each
device gathers the weight. A decode step has few rows: then these are moved to the parts, and sums or columns back
(Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 3.2.2, "2D weight-stationary"). For 64 rows of
Llama 3 70B on 16 chips of a v5e it is a 70th of the bytes. What must hold: the devices of the axis have different rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.quantised import QuantisedWeight, is_widened
from lifecycle.kernels.weight_form import WeightForm
from lifecycle.parallel.collectives import all_gather, all_to_all, axis_size, reduce_scatter

MOVED_SHARE = 4  # rows move while all devices' are at most `d_model` divided by this


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CutWeight(WeightForm):
    """This device's part of a weight `[D, F]`: some of its rows (`dim` 0) or columns (1)."""

    part: Any  # an array or a `QuantisedWeight`
    axis: str = field(metadata={"static": True})  # the logical axis that shards it
    dim: int = field(metadata={"static": True})


def moves_rows(axis: str, num_rows: int, d_model: int) -> bool:
    """Whether `num_rows` of each device should move, and not the weights that the axis shards. A row's share of the
    bytes is that of its inputs and outputs in the weight's D x F."""
    return axis_size(axis) > 1 and MOVED_SHARE * num_rows * axis_size(axis) <= d_model


def can_cut(weight: Any) -> bool:
    """Whether the sum over parts is the weight's product: not of rows that are rounded, with one scale for each."""
    return not isinstance(weight, QuantisedWeight) or is_widened(weight)


def whole(weight: CutWeight) -> Any:
    """The weight itself, gathered, for what is not a plain product."""
    gather = partial(all_gather, logical=weight.axis, dim=weight.dim)
    if not isinstance(weight.part, QuantisedWeight):
        return gather(weight.part)
    scale = gather(weight.part.scale) if weight.dim == 1 else weight.part.scale
    return QuantisedWeight(gather(weight.part.values), scale)


def cut_products(
    x: Float[Array, "1 N D"],
    weights: Sequence[CutWeight],
    products: Callable[[Array, Sequence[Any]], tuple[Array, ...]],
) -> tuple[Float[Array, "1 N _"], ...]:
    """`x` times each weight, by `products` of parts; weights of one call are cut alike. Where a weight's rows are cut
    the devices' sums are added in `x`'s dtype, as over `tensor`."""
    axis, dim = weights[0].axis, weights[0].dim
    assert all((w.axis, w.dim) == (axis, dim) for w in weights)
    parts = [w.part for w in weights]
    if dim == 1:
        outs = products(all_gather(x, axis, 1), parts)
        return tuple(_own_rows(out, axis) for out in outs)
    outs = products(_own_columns(x, axis), parts)
    ends = [sum(out.shape[2] for out in outs[:number]) for number in range(1, len(outs))]
    return tuple(jnp.split(reduce_scatter(jnp.concatenate(outs, 2), axis, 1), ends, 2))


# All-to-alls over a leading dimension: one that splits rows and joins columns the TPU compiler makes of reductions over
# a dimension of one, 193 k cycles for 64 x 4,096, where the product takes 75 k.


def _own_columns(x: Float[Array, "1 N D"], axis: str) -> Float[Array, "1 rows columns"]:
    """From all columns of this device's rows to this device's columns of all rows."""
    columns = jnp.stack(jnp.split(x[0], axis_size(axis), 1))
    return all_to_all(columns, axis, 0, 0).reshape(1, -1, columns.shape[2])


def _own_rows(x: Float[Array, "1 rows columns"], axis: str) -> Float[Array, "1 N D"]:
    """The way back."""
    pieces = x.reshape(axis_size(axis), -1, x.shape[2])
    return jnp.concatenate(list(all_to_all(pieces, axis, 0, 0)), 1)[None]
