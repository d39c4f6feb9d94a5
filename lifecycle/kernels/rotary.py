"""Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2.2), halves layout as in Llama's published weights.

The gradient of a rotation is the rotation back, written out: differentiating the concatenation pads and adds instead.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int


def rotary_angles(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Float[Array, "2 B T 1 Dh/2"]:
    """Cosines and sines of the positions' angles, float32, for all layers and heads at once."""
    frequencies = theta ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


@jax.custom_vjp
def rotate(x: Float[Array, "B T H Dh"], angles: Float[Array, "2 B T 1 Dh/2"]) -> Float[Array, "B T H Dh"]:
    """Turns each pair `(x[i], x[i + Dh/2])` by its position's angle; computes in float32."""
    return _turn(x, angles[0], angles[1])


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _rotate(x: Array, angles: Array) -> tuple[Array, Array]:
    return rotate(x, angles), angles


def _rotate_gradient(angles: Array, grad: Array) -> tuple[Array, None]:
    return _turn(grad, angles[0], -angles[1]), None


rotate.defvjp(_rotate, _rotate_gradient)
