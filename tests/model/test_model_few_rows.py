"""Experts that all get all rows against each row's own experts, one by one."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.kernels.activation import gated
from lifecycle.kernels.group_scaled import group_scaled
from lifecycle.kernels.quantised import QuantisedWeight, quantise
from lifecycle.model.few_rows import by_all_experts, is_few

ROWS, EXPERTS, D, F = 5, 4, 8, 6


@pytest.mark.parametrize(
    "weights", [None, *(pytest.param(weights, marks=pytest.mark.slow) for weights in ("int8", "int4"))]
)
def test_rows_get_the_weighted_sum_of_their_experts(weights: str | None) -> None:
    draw = np.random.default_rng(0)
    plain = {name: jnp.asarray(draw.normal(size=(EXPERTS, *size)), jnp.float32)
             for name, size in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D)))}  # fmt: skip
    biases = {f"{name}_bias": jnp.asarray(draw.normal(size=(EXPERTS, F)), jnp.float32) for name in ("gate", "up")}
    held: dict[str, Any] = dict(plain)
    if weights == "int4":
        held = {name: group_scaled(weight, 4) for name, weight in plain.items()}
        plain = {name: weight.dense(jnp.float32) for name, weight in held.items()}
    if weights == "int8":
        held = {name: QuantisedWeight(*quantise(weight, (1,), jnp.int8)) for name, weight in plain.items()}
        plain = {name: weight.values * weight.scale for name, weight in held.items()}
    x, shares = jnp.asarray(draw.normal(size=(ROWS, D)), jnp.float32), draw.random((ROWS, 2)).astype(np.float32)
    ids = np.array([[0, 3], [2, 1], [EXPERTS, EXPERTS], [1, 0], [3, EXPERTS]])  # padding goes to no expert
    found = by_all_experts("silu", x, jnp.asarray(ids), jnp.asarray(shares), held | biases)
    for row, own in enumerate(ids):
        expected = np.zeros(D, np.float32)
        for expert, share in zip(own, shares[row], strict=True):
            if expert < EXPERTS:
                gate, up = (x[row] @ plain[name][expert] + biases[f"{name}_bias"][expert] for name in ("gate", "up"))
                expected += share * np.asarray(gated(gate, up, "silu") @ plain["down"][expert])
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_row_with_others_is_the_row_alone() -> None:
    draw = np.random.default_rng(1)
    weights = {name: jnp.asarray(draw.normal(size=(EXPERTS, *size)), jnp.float32)
               for name, size in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D)))}  # fmt: skip
    x, ids = jnp.asarray(draw.normal(size=(ROWS, D)), jnp.float32), jnp.asarray(draw.integers(0, EXPERTS, (ROWS, 2)))
    shares = jnp.ones((ROWS, 2))
    together = by_all_experts("silu", x, ids, shares, weights)
    alone = by_all_experts("silu", x.at[1:].set(7.0), ids.at[1:].set(0), shares, weights)
    np.testing.assert_array_equal(together[0], alone[0])


def test_an_expert_that_is_not_finite_reaches_those_only_who_have_chosen_it() -> None:
    draw = np.random.default_rng(2)
    weights = {name: jnp.asarray(draw.normal(size=(EXPERTS, *size)), jnp.float32)
               for name, size in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D)))}  # fmt: skip
    x, ids = jnp.asarray(draw.normal(size=(ROWS, D)), jnp.float32), np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
    damaged = {name: weight.at[1].set(jnp.nan) for name, weight in weights.items()}
    found, expected = (
        by_all_experts("silu", x, jnp.asarray(ids), jnp.ones((ROWS, 2)), own) for own in (damaged, weights)
    )
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[2:], expected[2:])


@pytest.mark.parametrize(("platform", "num_rows", "expected"), [("cpu", 1, False), ("tpu", 256, True),
                                                                ("gpu", 257, False)])  # fmt: skip
def test_accelerators_give_all_experts_up_to_256_rows(
    platform: str, num_rows: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.model.few_rows.platform", lambda: platform)
    assert is_few(num_rows) is expected
