"""Rounded weights of inference: made from loaded ones, sharded as they are, and packed for a CPU's kernel.

| format | a layer's matrices | rows that they multiply |
|---|---|---|
| `int8` | a scale for each column, on CPUs for each 32 rows of one | int8, a scale each, on CPUs for each 32 values |
| `int4` | a scale for each 32 rows of a column | the compute dtype, on CPUs int8, a scale for each 32 values |
| `fp8` | float8 (E4M3), a scale for each column | float8, a scale each |

On TPUs rows are not rounded in any format (`kernels/quantised.py:is_widened`).

Embedding table and head are int8 in all of them: a scale for each row, on CPUs for each 32 values of one. Norms,
biases, sinks and routers stay as they are. All scales follow from the values. Every function of the model takes every
form, so likelihoods measure what is served.
"""

import logging
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.config import ConfigError
from lifecycle.core.platform import platform
from lifecycle.core.typing import Array
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.group_scaled import group_scaled, group_scaled_table, group_size
from lifecycle.kernels.linear import dense, is_rounded
from lifecycle.kernels.packed import PackedWeight, packed, packed_floats
from lifecycle.kernels.quantised import FORMATS, QuantisedTable, QuantisedWeight, quantise
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, compute_dtype, parameters
from lifecycle.model.quantised import is_quantised
from lifecycle.model.stacks import DRAFTER
from lifecycle.parallel.axes import RULES, MeshConfig

LOG = logging.getLogger(__name__)


def in_format(config: ModelConfig, params: Params, weights: WeightFormat | None) -> Params:
    """The parameters with their matrices in a format; None: unchanged. The arrays that they replace are freed one by
    one if nobody else holds them."""
    if weights is None:
        return params
    return jax.tree.map(lambda declared, array: leaf_in_format(declared, array, weights), parameters(config), params)


def leaf_in_format(declared: Parameter, array: Array, weights: WeightFormat) -> Any:
    """One parameter, or a stack of them, in a format."""
    if is_table(declared):
        return _group_scaled_table(array) if platform() == "cpu" else _table(array)
    if not is_quantised(declared):
        return array
    bits = _bits_in_groups(weights)
    return _weight(array, weights) if bits is None else _group_scaled(array, bits)


def as_served(config: ModelConfig, params: Params, weights: WeightFormat) -> Params:
    """The parameters with the values that a format gives them, as plain arrays. A drafter stays as it is: it is not
    served in formats."""
    target = {name: part for name, part in params.items() if name != DRAFTER}
    dtype = compute_dtype(config)
    held = jax.tree.map(
        lambda declared, array: leaf_as_served(declared, array, weights, jnp.promote_types(array.dtype, dtype)),
        parameters(config.target),
        target,
    )
    return params | held


@partial(jax.jit, static_argnums=(0, 2, 3))
def leaf_as_served(declared: Parameter, array: Array, weights: WeightFormat, dtype: Any) -> Array:
    """One parameter, or a stack of them, with the values that a format gives it, rounded to `dtype`; what formats leave
    as it is stays so."""
    held = leaf_in_format(declared, array.astype(jnp.float32), weights)
    if isinstance(held, QuantisedTable):
        return held.dense().astype(dtype)
    return dense(held).astype(dtype) if is_rounded(held) else array


def is_table(declared: Parameter) -> bool:
    """Whether a parameter is the embedding table or the head."""
    return declared.is_matrix and "vocab" in declared.axes


def check_groups(config: ModelConfig, mesh: MeshConfig, weights: WeightFormat | None) -> None:
    """Raises `ConfigError` if a mesh cuts a matrix of a format, or a table, within a group."""
    if weights is None:
        return
    is_in_groups = _bits_in_groups(weights) is not None
    for known in jax.tree.leaves(parameters(config)):
        contracted = -1 if is_table(known) else -2
        if platform() == "cpu" if is_table(known) else is_quantised(known) and is_in_groups:
            _check_groups(known.axes[contracted], known.shape[contracted], mesh, weights)


def _check_groups(axis: str | None, depth: int, mesh: MeshConfig, weights: str) -> None:
    sizes = {name: getattr(mesh, name) for name in (RULES[axis] if axis else ())}
    size = group_size(depth)
    if depth > size and depth // size % math.prod(sizes.values()):
        given = " x ".join(f"mesh.{name}={parts}" for name, parts in sizes.items() if parts > 1)
        raise ConfigError(
            f"weights={weights} has groups of {size} rows, and {given} does not divide the {depth // size} groups of a "
            f"matrix of {depth} rows; use sizes that do, or no rounded weights"
        )


def _bits_in_groups(weights: WeightFormat) -> int | None:
    """The bits of a format's values, if they are in groups."""
    return {"int4": 4, "int8": 8 if platform() == "cpu" else None, "fp8": None}[weights]


_group_scaled = jax.jit(group_scaled, static_argnums=1)
_group_scaled_table = jax.jit(group_scaled_table)


@jax.jit
def _table(array: Array) -> QuantisedTable:
    return QuantisedTable(*quantise(array, (array.ndim - 1,), jnp.int8))


@partial(jax.jit, static_argnums=1)
def _weight(array: Array, weights: str) -> QuantisedWeight:
    return QuantisedWeight(*quantise(array, (array.ndim - 2,), FORMATS[weights].values))


def axes_in_use(axes: Params, params: Params) -> Params:
    """Logical axes of parameters in any format, from `axes` of plain ones with the same stacks or lists of layers."""

    def leaf(names: Any, held: Any) -> Any:
        one: Any = (None,)
        if isinstance(held, PackedWeight):
            return PackedWeight(one * held.values.ndim, None if held.scale is None else one * 3)
        if not is_rounded(held):
            return names
        contracted = 1 if isinstance(held, QuantisedTable) else held.scale.ndim - 2
        of_scale: Any = list(names)
        if held.scale.shape[contracted] == 1:
            of_scale[contracted] = None
        made: Any = type(held)
        return made(names, tuple(of_scale))

    return jax.tree.map(leaf, axes, params, is_leaf=lambda x: isinstance(x, tuple))


def packed_params(config: ModelConfig, declared: Params, params: Params) -> Params:
    """The parameters of one CPU, whose layers lie apart, for its kernels (`kernels/packed.py`), if it has them; with
    their declarations, a tree like theirs. Each weight is packed by itself, and the one that it replaces is freed if
    nobody else holds it."""
    if any(map(is_rounded, jax.tree.leaves(params, is_leaf=is_rounded))):
        if has_kernel("vnni"):
            return jax.tree.map(_packed, params, is_leaf=is_rounded)
        LOG.warning("XLA multiplies rounded weights slowly on CPUs; the kernel for them needs AVX-512 VNNI")
        return params
    if compute_dtype(config) != "float32" or not has_kernel("float_strips"):
        return params
    return jax.tree.map(_packed_floats, declared, params)


def _packed(weight: Any) -> Any:
    return jax.jit(packed)(weight) if is_rounded(weight) else weight


def _packed_floats(declared: Parameter, array: Array) -> Array | PackedWeight:
    if array.ndim != 2 or array.dtype != jnp.float32 or not (is_table(declared) or is_quantised(declared)):
        return array
    return jax.jit(packed_floats, static_argnums=1)(array, is_table(declared))
