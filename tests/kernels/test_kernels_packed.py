"""The kernel of CPUs with VNNI against the same arithmetic in NumPy, and against XLA's products of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels.linear import dense, linear
from lifecycle.kernels.logits import project, rows_of
from lifecycle.kernels.packed import PackedWeight, has_kernel, packed, packed_products
from lifecycle.kernels.quantised import QuantisedTable, QuantisedWeight, quantise

ONE_OP = 1e-5


@pytest.fixture(autouse=True)
def kernel() -> None:
    if not has_kernel():
        pytest.skip("needs llvmlite (uv sync) and a CPU with AVX-512 VNNI")


def weight(rng: np.random.Generator, *shape: int) -> QuantisedWeight:
    return QuantisedWeight(*quantise(jnp.asarray(rng.normal(size=shape), jnp.float32), (0,), jnp.int8))


def packed_of(held: QuantisedWeight | QuantisedTable) -> PackedWeight:
    found = packed(held)
    assert isinstance(found, PackedWeight)
    return found


def expected(x: Array, held: QuantisedWeight) -> np.ndarray:
    rows = np.asarray(x, np.float32)
    most = np.abs(rows).max(-1, keepdims=True)
    most = np.where(most < 1e-30, np.float32(1), most)
    values = np.rint(rows * (np.float32(127) / most)).astype(np.int64)
    sums = (values @ np.asarray(held.values, np.int64)).astype(np.float32)
    return sums * (most / np.float32(127)) * np.asarray(held.scale)


@settings(max_examples=8, deadline=None)
@given(
    num=st.integers(1, 17),
    depth=st.integers(1, 12),
    strips=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-38, 1e-20, 1.0, 1e20]),
)
def test_products_are_exact_sums_of_the_rounded_rows(
    num: int, depth: int, strips: list[int], seed: int, size: float
) -> None:
    """For any number of rows and weights: pieces that no worker has, heights that do not divide, a strip alone."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(num, 16 * depth)) * size, jnp.float32)
    weights = [weight(rng, 16 * depth, 16 * width) for width in strips]
    found = jax.jit(packed_products)(x, [packed_of(held) for held in weights])
    for out, held in zip(found, weights, strict=True):
        np.testing.assert_array_equal(out, expected(x, held))


def test_the_largest_magnitudes_do_not_overflow() -> None:
    x = jnp.full((8, 16_384), 1.0)
    held = QuantisedWeight(jnp.full((16_384, 16), -127, jnp.int8), jnp.ones((1, 16)))
    np.testing.assert_allclose(linear(x, packed_of(held)), -127.0 * 16_384, rtol=1e-6)
    np.testing.assert_allclose(linear(-x, packed_of(held)), 127.0 * 16_384, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(value: float) -> None:
    rng = np.random.default_rng(0)
    x, held = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32), packed_of(weight(rng, 64, 32))
    out = linear(x.at[3, 5].set(value), held)
    assert not np.isfinite(out[3]).any()
    np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(linear(x, held), 3, 0))


def test_a_row_has_the_same_product_in_any_batch() -> None:
    rng = np.random.default_rng(1)
    x, held = jnp.asarray(rng.normal(size=(24, 96)), jnp.float32), packed_of(weight(rng, 96, 208))
    for first, last in ((0, 1), (3, 5), (5, 9), (2, 18)):
        np.testing.assert_array_equal(linear(x[first:last], held), linear(x, held)[first:last])


def test_xla_has_the_same_products_and_the_plain_weight_is_near() -> None:
    rng = np.random.default_rng(2)
    x, held = jnp.asarray(rng.normal(size=(2, 3, 64)), jnp.float32), weight(rng, 64, 48)
    out = linear(x, packed_of(held))
    np.testing.assert_allclose(out, linear(x, held), rtol=ONE_OP, atol=ONE_OP)
    np.testing.assert_array_equal(dense(packed_of(held)), dense(held))
    np.testing.assert_allclose(out, x @ dense(held), atol=0.02 * float(jnp.abs(out).max()))


def test_a_table_gives_rows_and_logits() -> None:
    rng = np.random.default_rng(3)
    plain = jnp.asarray(rng.normal(size=(80, 32)), jnp.float32)
    table = QuantisedTable(*quantise(plain, (1,), jnp.int8))
    held, ids = packed_of(table), jnp.array([[0, 15, 16], [79, 33, 1]])
    np.testing.assert_array_equal(rows_of(held, ids), rows_of(table, ids))
    np.testing.assert_allclose(rows_of(held, ids), plain[ids], atol=0.02)
    hidden = jnp.asarray(rng.normal(size=(5, 32)), jnp.float32)
    np.testing.assert_allclose(project(hidden, held, 30.0), project(hidden, table, 30.0), rtol=ONE_OP, atol=ONE_OP)


def test_sizes_that_are_no_multiples_stay_as_they_are() -> None:
    rng = np.random.default_rng(4)
    for shape in ((24, 32), (32, 24)):
        held = weight(rng, *shape)
        assert packed(held) is held
