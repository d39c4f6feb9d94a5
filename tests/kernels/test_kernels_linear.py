"""Products, SwiGLU and rotation: values and written-out gradients against autodiff of the plain formula."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lifecycle.core.typing import Array
from lifecycle.kernels.activation import swiglu
from lifecycle.kernels.linear import linear
from lifecycle.kernels.rotary import rotary_angles, rotate

ONE_OP = 1e-5
ROTATED = 2e-5  # sines of angles up to 500 radians in float32
POSITIONS = jnp.array([[0, 1, 2, 0, 1], [7, 500, 3, 2, 100]])


def plain_rotate(x: Array, positions: Array, theta: float) -> Array:
    """Complex multiplication by `exp(i * position * theta^(-2j/Dh))`."""
    half = x.shape[-1] // 2
    frequencies = jnp.exp(-jnp.log(theta) * jnp.arange(half) / half)
    turn = jnp.exp(1j * positions[:, :, None, None] * frequencies)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


def arrays(*shapes: tuple[int, ...], dtype: Any = jnp.float32) -> list[Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function: Callable[..., Array], *inputs: Array) -> tuple[Array, ...]:
    out, pull = jax.vjp(function, *inputs)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


CASES: dict[str, tuple[Callable[..., Array], Callable[..., Array], list[tuple[int, ...]]]] = {
    "linear": (linear, lambda x, w: x @ w, [(2, 3, 5), (5, 7)]),
    "linear of one row": (linear, lambda x, w: x @ w, [(5,), (5, 7)]),
    "swiglu": (swiglu, lambda gate, up: gate / (1 + jnp.exp(-gate)) * up, [(2, 3, 6), (2, 3, 6)]),
    "rotate": (
        lambda x: rotate(x, rotary_angles(POSITIONS, 8, 1e4)),
        lambda x: plain_rotate(x, POSITIONS, 1e4),
        [(2, 5, 3, 8)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(name: str) -> None:
    ours, plain, shapes = CASES[name]
    inputs = arrays(*shapes)
    for found, exact in zip(value_and_gradients(ours, *inputs), value_and_gradients(plain, *inputs), strict=True):
        np.testing.assert_allclose(found, exact, atol=ROTATED if name == "rotate" else ONE_OP, rtol=0)
    check_grads(jax.jit(ours), inputs, order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_bfloat16(name: str) -> None:
    ours, plain, shapes = CASES[name]
    inputs = arrays(*shapes, dtype=jnp.bfloat16)
    found = value_and_gradients(ours, *inputs)
    assert {array.dtype for array in found} == {jnp.dtype(jnp.bfloat16)}
    exact = plain(*(x.astype(jnp.float32) for x in inputs))
    np.testing.assert_allclose(found[0].astype(jnp.float32), exact, atol=0.05, rtol=0.02)


def test_a_bfloat16_product_is_accumulated_in_float32() -> None:
    x = jnp.ones((1, 4096), jnp.bfloat16)
    assert linear(x, jnp.ones((4096, 1), jnp.bfloat16)).item() == 4096  # in bfloat16 a sum of ones ends at 256


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    q, k = arrays((1, 1, 1, 8), (1, 1, 1, 8))

    def at(x: Array, position: int) -> Array:
        return rotate(x, rotary_angles(jnp.array([[position]]), 8, 1e4))

    assert np.array_equal(at(q, 0), q)
    np.testing.assert_allclose(jnp.linalg.norm(at(q, 77)), jnp.linalg.norm(q), rtol=1e-6)
    np.testing.assert_allclose((at(q, 9) * at(k, 4)).sum(), (at(q, 105) * at(k, 100)).sum(), atol=ONE_OP * 2)
