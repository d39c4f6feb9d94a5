"""Root mean square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"), its gradient
written out.

The mean squares are an argument: the pass that makes the rows can sum their squares too, as a TPU does beside a product
for nothing, and the backward pass has them. A pass of its own costs a v5p 0.37 M cycles for `[2, 8192, 4096]`. What
must hold: `mean_square` is that of `x`. The gradient in `x` covers it, so that in `mean_square` is zero.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.row_sum import row_sum
from lifecycle.parallel.collectives import axis_size, psum


def mean_squares(x: Float[Array, "*rows D"], cut: str | None = None) -> Float[Array, "*rows"]:
    """The mean square of each row in float32; `cut`: the logical axis that shards `D`, if it is sharded."""
    wide = jax.lax.stop_gradient(x).astype(jnp.float32)
    return _mean(wide * wide, cut)


def mean_squares_apart(x: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """The same in a pass of its own, for a TPU whose product, which makes the rows, writes them to a stack, too: it has
    two results at most. Squares are cut into two numbers of `x`'s dtype, whose sums are exact in float32."""
    squares = jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32))
    kind = jnp.finfo(x.dtype)
    high = jax.lax.reduce_precision(squares, kind.nexp, kind.nmant)
    return (row_sums(high.astype(x.dtype)) + row_sums((squares - high).astype(x.dtype))) / x.shape[-1]


def row_sums(terms: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """Sums in float32 as a product with ones, which takes a TPU a third of a reduction's time."""
    ones = jnp.ones((terms.shape[-1], 128), terms.dtype)  # a single column would become a reduction again
    return jnp.dot(terms, ones, preferred_element_type=jnp.float32)[..., 0]


def _mean(x: Array, cut: str | None) -> Float[Array, "*rows"]:
    if cut is None:
        return row_sum(x) / x.shape[-1]
    return psum(row_sum(x), cut) / (x.shape[-1] * axis_size(cut))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def rms_norm(
    x: Float[Array, "*rows D"],
    mean_square: Float[Array, "*rows"],
    scale: Float[Array, " D"],
    eps: float,
    cut: str | None = None,
) -> Float[Array, "*rows D"]:
    """`scale * x / sqrt(mean_square + eps)`, computed in float32, in `x`'s dtype."""
    return (_unit(x, mean_square, eps) * scale).astype(x.dtype)


def _unit(x: Array, mean_square: Array, eps: float) -> Float[Array, "*rows D"]:
    return x.astype(jnp.float32) * jax.lax.rsqrt(mean_square + eps)[..., None]


def _forward(
    x: Array, mean_square: Array, scale: Array, eps: float, cut: str | None
) -> tuple[Array, tuple[Array, Array, Array]]:
    return rms_norm(x, mean_square, scale, eps, cut), (x, mean_square, scale)


def _gradient(eps: float, cut: str | None, saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, None, Array]:
    x, mean_square, scale = saved
    unit, wide = _unit(x, mean_square, eps), grad.astype(jnp.float32)
    along = _mean(unit * wide * scale, cut)[..., None]
    grad_x = jax.lax.rsqrt(mean_square + eps)[..., None] * (wide * scale - unit * along)
    return grad_x.astype(x.dtype), None, (unit * wide).sum(tuple(range(x.ndim - 1)))


rms_norm.defvjp(_forward, _gradient)
