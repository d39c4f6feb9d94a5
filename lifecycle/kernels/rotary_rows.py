"""Rotary embedding on TPUs as one pass over the projections' own layout, `[B, T, H * Dh]`.

With XLA's operations the compiler moves positions to the lanes and back for the kernels: at Llama-3.1-8B's shapes on
v5p 1.0 M cycles of copies per layer and direction, and 0.7 M for the rotation. Here a head is rolled by half its lanes
in registers, and the pass is memory-bound. What must hold: a head is a multiple of 128 lanes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.layout import LANES

BLOCK_BYTES = 2 << 20  # of input in VMEM; with the output, both double-buffered, 8 of 16 MB


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rotate_rows(
    x: Float[Array, "B T H Dh"], angles: Float[Array, "2 B T Dh"], interpret: bool = False
) -> Float[Array, "B T H Dh"]:
    """Rotates each pair `(x[i], x[i + Dh/2])` by its position's angle, with cosines and sines repeated to full heads;
    computes in float32."""
    return _turned(x, angles, 1, interpret)


def _rotate(x: Array, angles: Array, interpret: bool) -> tuple[Array, Array]:
    return rotate_rows(x, angles, interpret), angles


def _rotate_gradient(interpret: bool, angles: Array, grad: Array) -> tuple[Array, None]:
    return _turned(grad, angles, -1, interpret), None


rotate_rows.defvjp(_rotate, _rotate_gradient)


def _turned(x: Array, angles: Array, direction: int, interpret: bool) -> Array:
    batch, length, heads, dim = x.shape
    assert dim % LANES == 0, "head_dim must be a multiple of the lanes; else use `rotary.rotate`"
    width = heads * dim
    block = min(length, max(16, BLOCK_BYTES // (width * x.dtype.itemsize) // 16 * 16))
    own = pl.BlockSpec((None, block, width), lambda b, t: (b, t, 0))
    out = pl.pallas_call(
        partial(_kernel, dim, direction),
        grid=(batch, pl.cdiv(length, block)),
        in_specs=[own, pl.BlockSpec((2, None, block, dim), lambda b, t: (0, b, t, 0))],
        out_specs=own,
        out_shape=jax.ShapeDtypeStruct((batch, length, width), x.dtype),
        # `x` may be a slice of saved arrays, which the kernel then reads in place instead of from a copy
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), allow_input_fusion=(True, False)
        ),
        name="rotate",
        interpret=interpret,
    )(x.reshape(batch, length, width), angles)
    return out.reshape(x.shape)


def _kernel(dim: int, direction: int, x, angles, out) -> None:  # refs
    cos, sin = angles[0], angles[1]
    is_first = jax.lax.broadcasted_iota(jnp.int32, sin.shape, 1) < dim // 2
    sin = jnp.where(is_first, -direction * sin, direction * sin)
    for first in range(0, x.shape[1], dim):
        head = x[:, first : first + dim].astype(jnp.float32)
        out[:, first : first + dim] = (head * cos + pltpu.roll(head, dim // 2, 1) * sin).astype(out.dtype)
