"""A layer's weights as a device computes with them: its shards put together, in the dtype of products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.kernels.adapted import AdaptedWeight, LowRankWeight
from lifecycle.kernels.group_scaled import GroupScaled
from lifecycle.kernels.nf4 import Nf4Weight, dense
from lifecycle.kernels.packed import PackedWeight
from lifecycle.kernels.quantised import QuantisedWeight
from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.lora import column_lengths
from lifecycle.model.parameter import Axes, Parameter
from lifecycle.model.params import Params, compute_dtype, dtype_in_use
from lifecycle.model.quantised import gathered_weight, is_quantised, quantised_weight
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, psum

# the logical axes over which a layer's weights are gathered before they are used
GATHERED = ("embed", "expert_embed")


def gathered(
    config: ModelConfig,
    declared: Params,
    weights: Params,
    precision: Precision | None = None,
) -> Params:
    """The weights of a layer, or of stacks of layers, as a device computes with them: in the dtype of `params_in_use`,
    and gathered over the axes that shard `d_model`. With a `precision`, a layer's matrices are `QuantisedWeight`s; what
    is rounded already stays so. Where hidden states are cut, matrices stay in parts."""
    assert precision is None or axis_size("hidden") == 1, "rows of training are not cut"

    def weight(parameter: Parameter, array: Any) -> Any:
        axes = _gathered_axes(parameter)
        if isinstance(array, AdaptedWeight):
            a, b = (_gathered(side, (None, None, axis)) for side, axis in zip((array.a, array.b), axes, strict=True))
            ids = all_gather(array.ids, "hidden", array.ids.ndim - 1) if "embed" in parameter.axes else array.ids
            return AdaptedWeight(weight(parameter, array.weight), a, b, ids)
        if isinstance(array, Nf4Weight):
            array = _dense_shard(parameter, array)
        if isinstance(array, LowRankWeight):
            return _low_rank_gathered(config, parameter, array, weight)
        if isinstance(array, PackedWeight):
            return array
        if isinstance(array, GroupScaled):
            return gathered_weight(axes, array)
        if isinstance(array, QuantisedWeight):
            return gathered_weight(axes, array)
        if precision is not None and is_quantised(parameter):
            return quantised_weight(axes, precision, compute_dtype(config), array.astype(jnp.float32))
        return _gathered(_rounded(array, dtype_in_use(config, parameter)), axes)

    return jax.tree.map(weight, declared, weights)


def _dense_shard(parameter: Parameter, shard: Nf4Weight) -> Array:
    """This device's shard of a weight in NF4, in float32."""
    columns = parameter.axes[-1]
    return dense(shard) if columns is None else dense(shard, axis_index(columns), axis_size(columns))


def _low_rank_gathered(
    config: ModelConfig, parameter: Parameter, shard: LowRankWeight, weight: Callable[[Parameter, Any], Any]
) -> LowRankWeight:
    """A weight and the matrices beside it as products take them; DoRA's lengths are of the shards."""
    *stack, rows, columns = _gathered_axes(parameter)
    dtype, magnitude = compute_dtype(config), shard.magnitude
    base = _dense_shard(parameter, shard.weight) if isinstance(shard.weight, Nf4Weight) else shard.weight
    scaled = shard.b.astype(jnp.float32) * shard.scale
    if magnitude is not None:
        added = jnp.einsum("...rd,...rf->...df", shard.a.astype(jnp.float32), scaled, precision="highest")
        whole = base.astype(jnp.float32) + added
        squares, of_rows = jnp.square(jax.lax.stop_gradient(whole)).sum(-2), parameter.axes[-2]
        squares = squares if of_rows is None else psum(squares, of_rows)
        magnitude = _gathered(magnitude / column_lengths(squares), (*stack, columns))
    a, b = (
        _gathered(_rounded(side, dtype), (*stack, None, axis)) for side, axis in ((shard.a, rows), (scaled, columns))
    )
    return LowRankWeight(weight(parameter, base), a, b, magnitude, shard.scale)


def _gathered_axes(parameter: Parameter) -> Axes:
    """The axes over which a parameter is gathered before it is used."""
    kept = "embed" if axis_size("hidden") > 1 else None
    return tuple(axis if axis in GATHERED and axis != kept else None for axis in parameter.axes)


def _gathered(array: Array, axes: Axes) -> Array:
    """The array gathered along the dimensions that have an axis."""
    for dim, axis in enumerate(axes):
        array = array if axis is None else all_gather(array, axis, dim)
    return array


def _rounded(weight: Array, dtype: str) -> Array:
    """`weight.astype(dtype)`, such that a step keeps only the float32 array.

    XLA moves a conversion to bfloat16 out of the loop over layers and keeps rounded copies of all layers' weights: 1.5
    of Mixtral's 17 GB on a v5p 4x4x4. It does not move this rounding within float32, after which the conversion is
    exact.
    """
    if dtype == "bfloat16" and weight.dtype == jnp.float32:
        weight = jax.lax.reduce_precision(weight, exponent_bits=8, mantissa_bits=7)
    return weight.astype(dtype)
