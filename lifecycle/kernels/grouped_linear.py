"""A grouped matrix product with its gradients: in the dtype of the rows, or of 8-bit values with scales.

Of 8-bit values all three products are, as in `kernels/quantised.py`: a scale for each row, and for each column of each
group's matrix. Unlike there the rows are rounded again in the backward pass, to the same values: a layer of experts
keeps or recomputes the rows themselves. A gradient's column has one scale for all groups, since a token's gradient has
the same size whichever expert the token goes to; scales per group would be another pass over the rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.group_scaled import GroupScaled, rounded_rows
from lifecycle.kernels.grouped import group_ids, group_products, grouped_product
from lifecycle.kernels.quantised import QuantisedWeight, format_of, is_widened, quantise, received

type GroupWeights = Float[Array, "E D F"] | QuantisedWeight | GroupScaled


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    x: Float[Array, "N D"], weights: GroupWeights, group_sizes: Int[Array, " E"], is_filled: bool = True
) -> Float[Array, "N F"]:
    """`x[i] @ weights[g]` for the rows `i` of each group `g`; zero after the last group; in `x`'s dtype.

    The first `group_sizes[0]` rows of `x` are group 0's, and so on; the sizes' sum is at most `N`. With
    `is_filled=False`, rows after the last group are arbitrary, in the result and in the gradient of `x`: use it if they
    are never read.
    """
    return products_of(weights).forward(x, weights, group_sizes, is_filled)


def _forward(x: Array, weights: Any, group_sizes: Array, is_filled: bool) -> tuple[Array, tuple[Array, Any, Array]]:
    return grouped_matmul(x, weights, group_sizes, is_filled), (x, weights, group_sizes)


def _backward(is_filled: bool, saved: tuple[Array, Any, Array], grad: Array) -> tuple[Array, Any, None]:
    x, weights, group_sizes = saved
    products = products_of(weights)
    grad_x = products.rows_gradient(grad, weights, group_sizes, is_filled)
    return grad_x, products.weights_gradient(x, grad, weights, group_sizes), None


grouped_matmul.defvjp(_forward, _backward)


class Products(NamedTuple):
    """The three products of a kind of weights, whose arguments are as in `grouped_matmul`."""

    forward: Callable[[Array, Any, Array, bool], Array]  # of the rows
    rows_gradient: Callable[[Array, Any, Array, bool], Array]  # of the result's gradient
    weights_gradient: Callable[[Array, Array, Any, Array], Any]  # of the rows and the result's gradient


def products_of(weights: GroupWeights) -> Products:
    """The products of these weights."""
    if isinstance(weights, GroupScaled):
        return GROUP_SCALED
    return QUANTISED if isinstance(weights, QuantisedWeight) else PLAIN


def _plain_rows_gradient(grad: Array, weights: Array, group_sizes: Array, is_filled: bool) -> Array:
    return grouped_product(grad, weights, group_sizes, transposed=True, is_filled=is_filled)


def _plain(x: Array, weights: Array, group_sizes: Array, is_filled: bool) -> Array:
    return grouped_product(x, weights, group_sizes, is_filled=is_filled)


def _plain_weights_gradient(x: Array, grad: Array, weights: Array, group_sizes: Array) -> Array:
    return group_products(x, grad, group_sizes)


PLAIN = Products(_plain, _plain_rows_gradient, _plain_weights_gradient)


def _quantised(x: Array, weights: QuantisedWeight, group_sizes: Array, is_filled: bool) -> Array:
    if is_widened(weights):
        out = grouped_product(x, weights.values.astype(x.dtype), group_sizes, is_filled=is_filled)
        return (out * _column_scales(weights, group_sizes, len(x))).astype(x.dtype)
    values, scale = quantise(x, (1,), weights.values.dtype)
    out = grouped_product(values, weights.values, group_sizes, is_filled=is_filled)
    return _filled(out * scale * _column_scales(weights, group_sizes, len(x)), group_sizes).astype(x.dtype)


def _quantised_rows_gradient(grad: Array, weights: QuantisedWeight, group_sizes: Array, is_filled: bool) -> Array:
    wide = grad.astype(jnp.float32) * _column_scales(weights, group_sizes, len(grad))
    values, scale = quantise(wide, (1,), format_of(weights.values.dtype).gradients)
    out = grouped_product(values, weights.values, group_sizes, transposed=True, is_filled=is_filled)
    return _filled(out * scale, group_sizes).astype(grad.dtype)


def _quantised_weights_gradient(x: Array, grad: Array, weights: QuantisedWeight, group_sizes: Array) -> QuantisedWeight:
    values, scale = quantise(_filled(x, group_sizes), (1,), weights.values.dtype)
    wide = _filled(grad.astype(jnp.float32) * scale, group_sizes)
    by_column, column_scale = quantise(wide, (0,), format_of(weights.values.dtype).gradients)
    out = group_products(values, by_column, group_sizes) * column_scale
    assert weights.summed is not None
    return received(weights, out.astype(weights.summed.dtype))


QUANTISED = Products(_quantised, _quantised_rows_gradient, _quantised_weights_gradient)


def _group_scaled(x: Array, weights: GroupScaled, group_sizes: Array, is_filled: bool) -> Array:
    return _plain(rounded_rows(x), weights.dense(x.dtype), group_sizes, is_filled)


def _no_gradient(*_: Any) -> Any:
    raise AssertionError("weights in groups are for inference")


GROUP_SCALED = Products(_group_scaled, _no_gradient, _no_gradient)


def _column_scales(weights: QuantisedWeight, group_sizes: Array, num_rows: int) -> Float[Array, "N F"]:
    """The scales of the columns of each row's matrix."""
    return jnp.take(weights.scale[:, 0], group_ids(group_sizes, num_rows), axis=0, mode="clip")


def _filled(rows: Array, group_sizes: Array) -> Array:
    """The rows of groups, then zeros: what lies there may be no number."""
    return jnp.where((jnp.arange(len(rows)) < group_sizes.sum())[:, None], rows, 0)
