"""The kernel of CPUs with VNNI against the same arithmetic in NumPy, and against XLA's products of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.group_scaled import GroupScaled, group_scaled, group_scaled_table
from lifecycle.kernels.linear import dense, linear
from lifecycle.kernels.logits import project, rows_of
from lifecycle.kernels.packed import PackedWeight, packed, packed_products
from lifecycle.kernels.quantised import GROUP, QuantisedTable

ONE_OP = 1e-5
BITS = pytest.mark.parametrize("bits", [4, 8])
rounded, laid_out = jax.jit(group_scaled, static_argnums=1), jax.jit(packed)


@pytest.fixture(autouse=True)
def kernel() -> None:
    if not has_kernel("vnni"):
        pytest.skip("needs a CPU with AVX-512 VNNI")


def weight(rng: np.random.Generator, bits: int, *shape: int) -> GroupScaled:
    return rounded(jnp.asarray(rng.normal(size=shape), jnp.float32), bits)


def packed_of(held: GroupScaled | QuantisedTable) -> PackedWeight:
    found = laid_out(held)
    assert isinstance(found, PackedWeight)
    return found


def expected(x: Array, held: GroupScaled) -> np.ndarray:
    """Exact sums of integers in each group, then float64."""
    rows = np.asarray(x, np.float32).reshape(len(x), -1, GROUP)
    most = np.abs(rows).max(-1, keepdims=True)
    most = np.where(most < 1e-30, np.float32(1), most)
    values = np.rint(rows * (np.float32(127) / most)).astype(np.int64)
    groups = np.asarray(held.values.astype(jnp.int8), np.int64).reshape(rows.shape[1], GROUP, -1)
    sums = np.einsum("ngd,gdf->ngf", values, groups) * np.asarray(most / np.float32(127), np.float64)
    return np.einsum("ngf,gf->nf", sums, np.asarray(held.scale.astype(jnp.float32), np.float64))


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(
    num=st.integers(1, 17),
    groups=st.integers(1, 6),
    strips=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([4, 8])), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-38, 1e-20, 1.0, 1e20]),
)
def test_products_are_sums_of_the_rounded_rows(
    num: int, groups: int, strips: list[tuple[int, int]], seed: int, size: float
) -> None:
    """For any number of rows and weights, of 4 and 8 bits together: pieces that no worker has, heights that do not
    divide, a strip alone."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(num, GROUP * groups)) * size, jnp.float32)
    weights = [weight(rng, bits, GROUP * groups, 16 * width) for width, bits in strips]
    found = jax.jit(packed_products)(x, [packed_of(held) for held in weights])
    for out, held in zip(found, weights, strict=True):
        wanted = expected(x, held)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6 * float(np.abs(wanted).max()))


def test_the_largest_magnitudes_do_not_overflow() -> None:
    x = jnp.full((8, 16_384), 1.0)
    held = GroupScaled(jnp.full((16_384, 16), -127, jnp.int8), jnp.ones((512, 16), jnp.bfloat16))
    np.testing.assert_allclose(linear(x, packed_of(held)), -127.0 * 16_384, rtol=1e-6)
    np.testing.assert_allclose(linear(-x, packed_of(held)), 127.0 * 16_384, rtol=1e-6)


@BITS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(value: float, bits: int) -> None:
    rng = np.random.default_rng(0)
    x, held = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32), packed_of(weight(rng, bits, 64, 32))
    out = linear(x.at[3, 5].set(value), held)
    assert not np.isfinite(out[3]).any()
    np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(linear(x, held), 3, 0))


@BITS
def test_a_row_has_the_same_product_in_any_batch(bits: int) -> None:
    rng = np.random.default_rng(1)
    x, held = jnp.asarray(rng.normal(size=(40, 96)), jnp.float32), packed_of(weight(rng, bits, 96, 208))
    for first, last in ((0, 1), (3, 5), (5, 9), (2, 18), (9, 14)):
        np.testing.assert_array_equal(linear(x[first:last], held), linear(x, held)[first:last])


@BITS
def test_xla_has_the_same_products_and_the_plain_weight_is_near(bits: int) -> None:
    rng = np.random.default_rng(2)
    x, held = jnp.asarray(rng.normal(size=(2, 3, 64)), jnp.float32), weight(rng, bits, 64, 48)
    out = linear(x, packed_of(held))
    np.testing.assert_allclose(out, linear(x, held), rtol=ONE_OP, atol=ONE_OP)
    np.testing.assert_array_equal(dense(packed_of(held)), dense(held))
    np.testing.assert_allclose(out, x @ dense(held), atol=0.02 * float(jnp.abs(out).max()))


@pytest.mark.slow
def test_a_table_gives_rows_and_logits() -> None:
    rng = np.random.default_rng(3)
    plain = jnp.asarray(rng.normal(size=(80, 32)), jnp.float32)
    table = jax.jit(group_scaled_table)(plain)
    held, ids = packed_of(table), jnp.array([[0, 15, 16], [79, 33, 1]])
    np.testing.assert_array_equal(rows_of(held, ids), rows_of(table, ids))
    np.testing.assert_allclose(rows_of(held, ids), plain[ids], atol=0.02)
    hidden = jnp.asarray(rng.normal(size=(5, 32)), jnp.float32)
    np.testing.assert_allclose(project(hidden, held, 30.0), project(hidden, table, 30.0), rtol=ONE_OP, atol=ONE_OP)


@BITS
def test_sizes_that_are_no_multiples_stay_as_they_are(bits: int) -> None:
    rng = np.random.default_rng(4)
    for shape in ((48, 32), (32, 24)):
        held = weight(rng, bits, *shape)
        assert packed(held) is held
