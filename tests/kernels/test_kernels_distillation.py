"""Distillation in blocks: values and gradients of the formula, with and without a soft cap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.kernels import distillation as module
from lifecycle.kernels.distillation import distillation, likeliest

BATCH, LENGTH, WIDTH, VOCAB = 2, 7, 6, 11


def draws(dtype: str = "float32") -> tuple[Array, Array, Array, Array]:
    draw = np.random.default_rng(0)
    hidden, target = (2 * draw.standard_normal((BATCH, LENGTH, WIDTH)) for _ in range(2))
    table, weights = draw.standard_normal((VOCAB, WIDTH)), draw.random((BATCH, LENGTH)) * (draw.random(LENGTH) < 0.7)
    return jnp.asarray(hidden, dtype), jnp.asarray(target, dtype), jnp.asarray(table), jnp.asarray(weights)


def formula(hidden: Array, target: Array, table: Array, weights: Array, soft_cap: float | None) -> Array:
    def scores(x: Array) -> Array:
        logits = x.astype(jnp.float32) @ table.T
        return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)

    p, log_q = jax.nn.softmax(scores(target)), jax.nn.log_softmax(scores(hidden))
    return -(weights * (p * log_q).sum(-1)).sum()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", {"float32": 6, "bfloat16": 6})  # three positions: the last block is padded


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_loss_and_gradient_are_the_formulas(soft_cap: float | None) -> None:
    hidden, target, table, weights = draws()
    loss, grad = jax.value_and_grad(lambda x: 2 * distillation(x, target, table, weights, soft_cap)[0])(hidden)
    expected, exact = jax.value_and_grad(lambda x: 2 * formula(x, target, table, weights, soft_cap))(hidden)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, exact, rtol=1e-5, atol=1e-6)


def test_only_the_small_model_learns() -> None:
    grads = jax.grad(lambda *args: distillation(*args)[0], argnums=(1, 2, 3))(*draws())
    assert not any(np.any(grad) for grad in grads)


def test_in_bfloat16_it_is_near() -> None:
    loss, _ = distillation(*draws("bfloat16"))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, formula(*draws(), None), rtol=2e-2)


def test_the_likeliest_rows_come_along() -> None:
    hidden, target, table, weights = draws()
    expected = (hidden @ table.T).argmax(-1)
    assert np.array_equal(distillation(hidden, target, table, weights)[1], expected)
    assert np.array_equal(likeliest(hidden, table), expected)
    assert not likeliest(jnp.zeros_like(hidden), table).any()  # of equal ones the first
