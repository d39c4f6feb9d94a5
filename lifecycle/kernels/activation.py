"""Gated activations, with the gradient of the common one written out."""

from typing import Literal

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float

type Activation = Literal["silu", "gelu", "clamped"]
GATES = ("gate", "up")  # the names of a gated unit's halves for rematerialisation
CLAMP, CLAMPED_SLOPE = 7.0, 1.702  # gpt-oss's published values


@jax.custom_vjp
def swiglu(gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]) -> Float[Array, "*rows F"]:
    """`silu(gate) * up` (Shazeer 2020, "GLU Variants Improve Transformer"); only the inputs are saved for the
    gradient."""
    return jax.nn.silu(gate) * up


def _swiglu(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return swiglu(gate, up), (gate, up)


def _swiglu_gradient(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    gate, up = saved
    share = jax.nn.sigmoid(gate)
    return grad * up * (share * (1 + gate * (1 - share))), grad * (gate * share)


swiglu.defvjp(_swiglu, _swiglu_gradient)


def gated(
    gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"], activation: Activation
) -> Float[Array, "*rows F"]:
    """A gated linear unit's product: SwiGLU; GEGLU with GELU's tanh form (Gemma); or gpt-oss's, with gate
    `x sigmoid(1.702 x)`, where `x` is at most 7, and the other half clipped to [-7, 7] and shifted by one."""
    if activation == "silu":
        return swiglu(gate, up)
    if activation == "gelu":
        return jax.nn.gelu(gate, approximate=True) * up
    gate = jnp.minimum(gate, CLAMP)
    return gate * jax.nn.sigmoid(CLAMPED_SLOPE * gate) * (jnp.clip(up, -CLAMP, CLAMP) + 1)


def gated_with_gradients(
    gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"], grad: Float[Array, "*rows F"], activation: Activation
) -> tuple[Float[Array, "*rows F"], Float[Array, "*rows F"], Float[Array, "*rows F"]]:
    """`gated`, and from the gradient of it those of gate and up; in float32."""
    gate, up, grad = (x.astype(jnp.float32) for x in (gate, up, grad))
    product, pull = jax.vjp(lambda gate, up: gated(gate, up, activation), gate, up)
    return product, *pull(grad)
