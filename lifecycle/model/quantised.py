"""Layers' weights in 8 bits before they are gathered: a device rounds its own shard only, and receives 8 bits a value.

Rounded after the gather, every device would read and round the full weights of every layer, and receive twice the
bytes. A column's scale is of all its rows: where those are sharded, the devices first compare a number per column.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.group_scaled import GroupScaled
from lifecycle.kernels.quantised import FORMATS, QuantisedWeight, largest, rounded
from lifecycle.model.parameter import Axes, Parameter
from lifecycle.parallel.collectives import all_gather, axis_size, pmax


def is_quantised(parameter: Parameter) -> bool:
    """Whether a layer's parameter is the matrix, or matrices, of products that are not in float32 (a router's are)."""
    return parameter.fan_in is not None and not parameter.is_float32


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def quantised_weight(
    axes: Axes, precision: str, dtype: str, shard: Float[Array, "*stack rows columns"]
) -> QuantisedWeight:
    """The full weight, or a stack of them, from this device's float32 shard. `axes`: the logical axis over which each
    dimension is to be gathered, or None. Its gradient passes the rounding unchanged and is reduce-scattered in
    `dtype`."""
    *stack, rows, columns = axes
    most = largest(shard, (len(stack),))
    values, scale = rounded(shard, most if rows is None else pmax(most, rows), FORMATS[precision].values)
    full = _gathered(axes, values)
    summed = jnp.zeros(full.shape, dtype)
    is_cut_by_column = columns is not None and axis_size(columns) > 1
    return QuantisedWeight(full, _gathered((*stack, None, columns), scale), summed, is_cut_by_column)


def gathered_weight(axes: Axes, shard: QuantisedWeight | GroupScaled) -> QuantisedWeight | GroupScaled:
    """The full weight of a shard that is rounded already, as in inference; `axes` as in `quantised_weight`."""
    *stack, rows, columns = axes
    if isinstance(shard, GroupScaled):
        of_scale = (*stack, rows if shard.scale.shape[-2] > 1 else None, columns)
        return GroupScaled(_gathered(axes, shard.values), _gathered(of_scale, shard.scale))
    scale = _gathered((*stack, None, columns), shard.scale)
    is_cut_by_column = columns is not None and axis_size(columns) > 1
    return QuantisedWeight(_gathered(axes, shard.values), scale, is_cut_by_column=is_cut_by_column)


def _gathered(axes: Axes, array: Array) -> Array:
    for dim, axis in enumerate(axes):
        array = array if axis is None else all_gather(array, axis, dim)
    return array


def _forward(axes: Axes, precision: str, dtype: str, shard: Array) -> tuple[QuantisedWeight, None]:
    return quantised_weight(axes, precision, dtype, shard), None


def _backward(axes: Axes, precision: str, dtype: str, _: None, grad: QuantisedWeight) -> tuple[Array]:
    assert grad.summed is not None
    devices = [1 if axis is None else axis_size(axis) for axis in axes]
    shape = [size // num for size, num in zip(grad.summed.shape, devices, strict=True)]
    scatter = jax.linear_transpose(partial(_gathered, axes), jax.ShapeDtypeStruct(shape, dtype))
    return (scatter(grad.summed)[0].astype(jnp.float32),)


quantised_weight.defvjp(_forward, _backward)
