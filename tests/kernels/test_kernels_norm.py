"""Root mean square normalisation against its definition, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.kernels.norm import mean_squares, mean_squares_apart, rms_norm

EPS = 1e-5


def definition(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide / jnp.sqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + EPS) * scale).astype(x.dtype)


def ours(x: jax.Array, scale: jax.Array) -> jax.Array:
    return rms_norm(x, mean_squares(x), scale, EPS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_the_definitions(dtype: str, tolerance: float) -> None:
    x, scale, grad = (jax.random.normal(key, shape) for key, shape in zip(
        jax.random.split(jax.random.key(0), 3), ((2, 5, 16), (16,), (2, 5, 16)), strict=True
    ))  # fmt: skip
    results = []
    for function in (ours, definition):
        out, pull = jax.vjp(function, x.astype(dtype), scale)
        results.append((out, *pull(grad.astype(dtype))))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            found.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance, rtol=tolerance
        )


def test_the_gradient_covers_the_mean_squares() -> None:
    """Rows that only grow stay the same once normalised, so the gradient has no part along them."""
    x, grad = jax.random.normal(jax.random.key(1), (2, 3, 8))
    of_x, of_squares = jax.grad(lambda x, squares: (rms_norm(x, squares, jnp.ones(8), 0.0) * grad).sum(), (0, 1))(
        x, mean_squares(x)
    )
    np.testing.assert_allclose((of_x * x).sum(-1), 0, atol=1e-5)
    assert not of_squares.any()
    assert np.abs(of_x).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_squares_in_a_pass_of_their_own_are_the_same(dtype: str) -> None:
    x = (jax.random.normal(jax.random.key(2), (2, 5, 64)) * jnp.exp2(jnp.arange(64.0) / 4)).astype(dtype)
    np.testing.assert_allclose(jax.jit(mean_squares_apart)(x), mean_squares(x), rtol=1e-5)
