"""Weights in 8 bits for inference: made from loaded ones, sharded as they are, and packed for a CPU's kernel.

`int8` is W8A8 with dynamic scales: a layer's matrices have a scale for each column, embedding table and head one for
each row, and the rows that they multiply are rounded when they come (`kernels/quantised.py`). Norms, biases, sinks and
routers stay as they are. Every function of the model takes both forms, so likelihoods measure what is served.
"""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.kernels.linear import is_in_8_bits
from lifecycle.kernels.packed import PackedWeight, has_kernel, packed
from lifecycle.kernels.quantised import QuantisedTable, QuantisedWeight, quantise
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, parameters
from lifecycle.model.quantised import is_quantised

LOG = logging.getLogger(__name__)


def in_format(config: ModelConfig, params: Params, weights: WeightFormat | None) -> Params:
    """The parameters with their matrices in a format; None: unchanged. The arrays that they replace are freed one by
    one if nobody else holds them."""
    if weights is None:
        return params
    return jax.tree.map(lambda declared, array: leaf_in_format(declared, array, weights), parameters(config), params)


def leaf_in_format(declared: Parameter, array: Array, weights: WeightFormat) -> Any:
    """One parameter, or a stack of them, in a format."""
    assert weights == "int8"
    if is_table(declared):
        return _table(array)
    return _weight(array) if is_quantised(declared) else array


def is_table(declared: Parameter) -> bool:
    """Whether a parameter is the embedding table or the head."""
    return declared.is_matrix and "vocab" in declared.axes


@jax.jit
def _table(array: Array) -> QuantisedTable:
    return QuantisedTable(*quantise(array, (array.ndim - 1,), jnp.int8))


@jax.jit
def _weight(array: Array) -> QuantisedWeight:
    return QuantisedWeight(*quantise(array, (array.ndim - 2,), jnp.int8))


def axes_in_use(axes: Params, params: Params) -> Params:
    """Logical axes of parameters in any format, from `axes` of plain ones with the same stacks or lists of layers."""

    def leaf(names: Any, held: Any) -> Any:
        *stack, last = names
        one: Any = (None,)
        if isinstance(held, QuantisedWeight):
            scale: Any = (*stack[:-1], None, last)
            return QuantisedWeight(names, scale)
        if isinstance(held, QuantisedTable):
            of_rows: Any = (*stack, None)
            return QuantisedTable(names, of_rows)
        return PackedWeight(one * 4, one) if isinstance(held, PackedWeight) else names

    return jax.tree.map(leaf, axes, params, is_leaf=lambda x: isinstance(x, tuple))


def packed_params(params: Params) -> Params:
    """The parameters of one CPU, whose layers lie apart, for its kernel (`kernels/packed.py`), if it has one. Each
    weight is packed by itself, and the one that it replaces is freed if nobody else holds it."""
    is_any = any(map(is_in_8_bits, jax.tree.leaves(params, is_leaf=is_in_8_bits)))
    if not is_any:
        return params
    if not has_kernel():
        LOG.warning(
            "XLA multiplies weights in 8 bits slowly on CPUs: install the extra cpu-int8; its kernel needs AVX-512 VNNI"
        )
        return params
    return jax.tree.map(_packed, params, is_leaf=is_in_8_bits)


def _packed(weight: Any) -> Any:
    return jax.jit(packed)(weight) if is_in_8_bits(weight) else weight
