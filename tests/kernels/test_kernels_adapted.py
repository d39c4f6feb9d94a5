"""Adapted products: each row's own adapter, beside weights in any form, and bits that depend on nobody else's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.kernels.adapted import NO_ADAPTER, AdaptedWeight
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.linear import Weight, dense, gated_linear, linear, linears
from lifecycle.kernels.packed import packed
from lifecycle.kernels.quantised import QuantisedWeight, quantise
from lifecycle.model import layers
from lifecycle.model.config import RematName
from lifecycle.model.layers import Normed, RMSNorm
from lifecycle.testing.families import LLAMA

DEPTH, WIDTH, RANK, NUM = 32, 48, 3, 4
ONE_OP = 1e-5


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


WEIGHT = drawn(DEPTH, WIDTH) / DEPTH
A, B = drawn(NUM, RANK, DEPTH, seed=1), drawn(NUM, RANK, WIDTH, seed=2)


def adapted(weight: object, ids: list[int]) -> AdaptedWeight:
    return AdaptedWeight(weight, A, B, jnp.asarray(ids, jnp.int32))


@settings(max_examples=10)
@given(
    st.sampled_from([1, 4]).flatmap(
        lambda rows: st.lists(st.integers(NO_ADAPTER, NUM - 1), min_size=rows, max_size=rows)
    ),
    st.sampled_from([1, 3]),
)
def test_each_row_has_the_sum_of_its_own_adapter(ids: list[int], each: int) -> None:
    """`each`: tokens of a row."""
    x = drawn(1, len(ids) * each, DEPTH, seed=3)
    found = np.asarray(linear(x, adapted(WEIGHT, ids)))[0]
    for place, row in enumerate(np.asarray(x[0], np.float64)):
        expected, own = row @ np.asarray(WEIGHT, np.float64), ids[place // each]
        if own != NO_ADAPTER:
            expected = expected + row @ np.asarray(A[own], np.float64).T @ np.asarray(B[own], np.float64)
        np.testing.assert_allclose(found[place], expected, atol=ONE_OP, rtol=ONE_OP)


@pytest.mark.parametrize(("num", "rank", "depth", "width"), [(4, 3, DEPTH, WIDTH), (2, 16, 576, 1536)])
def test_a_rows_bits_depend_on_no_other_adapter_and_on_no_place(num: int, rank: int, depth: int, width: int) -> None:
    """The second sizes are among those whose bits changed with the place when all adapters were one product."""
    x, product = drawn(3, depth, seed=3), jax.jit(linear)
    weight, a, b = drawn(depth, width), drawn(num, rank, depth, seed=1), drawn(num, rank, width, seed=2)
    last, none = num - 1, NO_ADAPTER
    found = product(x, AdaptedWeight(weight, a, b, jnp.array([0, none, last])))
    assert np.array_equal(found[1], product(x, AdaptedWeight(weight, a, b, jnp.array([none] * 3)))[1])
    assert np.array_equal(found[1], product(x, weight)[1])
    huge = AdaptedWeight(weight, a[::-1].at[0].set(1e38), b[::-1], jnp.array([last, 0, none]))
    assert np.array_equal(found[0], product(x, huge)[0])
    assert not np.isfinite(product(x, huge)[1]).all()  # the sum is infinite, in its own row only


def test_it_is_added_to_products_of_8_bits() -> None:
    x, ids = drawn(2, DEPTH, seed=3), [0, 3]
    small = QuantisedWeight(*quantise(WEIGHT, (0,), jnp.int8))
    forms = [small, packed(small)] if has_kernel("vnni") else [small]
    added = linear(x, adapted(jnp.zeros_like(WEIGHT), ids))
    for form in forms:
        plain = linear(x, form)
        assert np.array_equal(linear(x, adapted(form, ids)), plain + added)
        both = linears(x, [adapted(form, ids), form])
        assert np.array_equal(both[0], plain + added)
        assert np.array_equal(both[1], plain)


def test_gated_products_have_it_too() -> None:
    gate, up, ids = drawn(2, DEPTH, seed=3), drawn(2, DEPTH, seed=4), [2, NO_ADAPTER]
    small = QuantisedWeight(*quantise(WEIGHT, (0,), jnp.int8))
    for form in (WEIGHT, small):
        plain = gated_linear(gate, up, form, "silu")
        added = gated_linear(gate, up, adapted(jnp.zeros_like(WEIGHT), ids), "silu")
        np.testing.assert_allclose(gated_linear(gate, up, adapted(form, ids), "silu"), plain + added, atol=ONE_OP)
        assert np.abs(added[0]).max() > 0.1


def test_products_behind_a_norm_have_it_on_tpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = RMSNorm(DEPTH, LLAMA)
    rows = Normed(drawn(1, 2, DEPTH, seed=3), norm)
    weights: dict[RematName, Weight] = {"q": adapted(WEIGHT, [1, 2]), "k": WEIGHT}
    expected = rows.products(weights)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    for found, wanted in zip(rows.products(weights), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=ONE_OP)


def test_what_is_no_plain_product_refuses_it() -> None:
    with pytest.raises(AssertionError, match="has no adapters"):
        dense(adapted(WEIGHT, [0]))
