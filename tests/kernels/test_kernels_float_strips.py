"""The kernel of floats on CPUs with AVX-512 against float64, and rows against themselves in other batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.linear import dense, linears
from lifecycle.kernels.logits import project, rows_of
from lifecycle.kernels.packed import PackedWeight, packed_floats

ONE_OP = 1e-5


@pytest.fixture(autouse=True)
def kernel() -> None:
    if not has_kernel("float_strips"):
        pytest.skip("needs a CPU with AVX-512")


def packed_of(weight: np.ndarray) -> PackedWeight:
    found = packed_floats(jnp.asarray(weight), is_table=False)
    assert isinstance(found, PackedWeight)
    return found


@settings(max_examples=8, deadline=None)
@given(
    num=st.integers(1, 17),
    depth=st.sampled_from([2, 32, 90]),
    columns=st.sampled_from([16, 80, 144]),
    seed=st.integers(0, 9),
)
def test_products_are_those_of_float64_and_of_a_row_alone(num: int, depth: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, depth)).astype(np.float32)
    weights = [rng.normal(size=(depth, size)).astype(np.float32) for size in (columns, 16)]
    product = jax.jit(lambda rows: linears(rows, [packed_of(weight) for weight in weights]))
    for found, alone, weight in zip(product(x), product(x[-1:]), weights, strict=True):
        exact = x.astype(np.float64) @ weight
        np.testing.assert_allclose(found, exact, atol=ONE_OP * np.abs(x.astype(np.float64) @ np.abs(weight)).max())
        np.testing.assert_array_equal(found[-1:], alone)


def test_a_table_gives_its_rows_and_the_logits_of_plain_products() -> None:
    rng = np.random.default_rng(0)
    table, x = rng.normal(size=(48, 32)).astype(np.float32), rng.normal(size=(2, 3, 32)).astype(np.float32)
    held = packed_floats(jnp.asarray(table), is_table=True)
    assert isinstance(held, PackedWeight) and held.shape == (48, 32)
    ids = jnp.array([[0, 17], [47, 16]])
    np.testing.assert_array_equal(rows_of(held, ids), table[np.asarray(ids)])
    np.testing.assert_allclose(project(jnp.asarray(x), held, 30.0), 30 * np.tanh(x @ table.T / 30), atol=ONE_OP * 30)
    np.testing.assert_array_equal(dense(held), table.T)


def test_other_sizes_stay_as_they_are() -> None:
    for shape, is_table in (((15, 4), True), ((5, 16), False)):
        assert isinstance(packed_floats(jnp.zeros(shape), is_table), jax.Array)
