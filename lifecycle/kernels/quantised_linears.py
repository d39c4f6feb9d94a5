"""Products of the same rows with several weights in int8 on a v6e, by the kernels of `quantised_product.py`.

One function for all of a layer's weights that multiply the same rows, because of the gradients: each weight's takes the
rows in 8 bits again, which XLA makes in the backward pass from the rows and the largest magnitude of each. Every kernel
of the forward pass finds those magnitudes, and XLA cannot know that they are the same ones.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.quantised import ROW_MAXIMUM, QuantisedWeight, received, rounded
from lifecycle.kernels.quantised_product import columns_product, rows_product


@jax.custom_vjp
def quantised_linears(x: Float[Array, "N D"], weights: tuple[QuantisedWeight, ...]) -> tuple[Array, ...]:
    """`x` times each weight, of 8-bit values; in `x`'s dtype. Their sizes must have blocks."""
    return _forward(x, weights)[0]


def _forward(x: Array, weights: tuple[QuantisedWeight, ...]) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    pairs = [rows_product(x, w.values, across=w.scale, is_turned=w.is_cut_by_column) for w in weights]
    most = checkpoint_name(pairs[0][1], ROW_MAXIMUM)
    values, scale = rounded(x, most[:, None], jnp.int8)
    return tuple(out for out, _ in pairs), (values, scale[:, 0], tuple(replace(w, summed=None) for w in weights))


def _backward(saved: tuple[Any, ...], grads: tuple[Array, ...]) -> tuple[Array, tuple[QuantisedWeight, ...]]:
    values, scale, weights = saved
    pairs = [gradients(grad, weight) for grad, weight in zip(grads, weights, strict=True)]
    of_weights = [received(w, by_rows(values, scale)) for w, (_, by_rows) in zip(weights, pairs, strict=True)]
    return reduce(add, reversed([of_x for of_x, _ in pairs])), tuple(of_weights)


quantised_linears.defvjp(_forward, _backward)


def gradients(
    grad: Float[Array, "N F"], weight: QuantisedWeight
) -> tuple[Float[Array, "N D"], Callable[[Array, Array], Array]]:
    """The gradient of a product's rows, and a function of their int8 values and scales that gives the weight's."""
    is_cut = weight.is_cut_by_column
    of_x, _ = rows_product(grad, weight.values.T, along=weight.scale, is_turned=not is_cut)
    return of_x, lambda values, scale: columns_product(values, scale, grad, is_transposed=is_cut)
