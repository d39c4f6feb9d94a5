"""Pages of 8 bits: what is stored of a token depends on nothing but the token, and is close to it; bad values stay in
it."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged import paged_attention
from lifecycle.kernels.paged_rows import Rows

BATCH, LENGTH, PAGE, HEADS, PARTS = 2, 20, 4, 2, (6, 2)
LATENT = Entry.latent(*PARTS)  # all of an entry is its key
PER_ROW = LENGTH // PAGE
HALF_STEP = {"int8": 0.5 / 127, "float8_e4m3fn": 0.5 / 8}  # of the largest value; of the value itself


@partial(jax.jit, static_argnames="dtype")
def written(entries: Array, table: Array, starts: Array, ends: Array, dtype: str) -> PageStore:
    """A store of two layers, whose second has the entries `[B, T, K, D]`, in chunks padded to one length."""
    store = PageStore.empty((2, BATCH * PER_ROW, HEADS, PAGE), LATENT, dtype)

    def one_chunk(number: Array, store: PageStore) -> PageStore:
        positions = starts[number] + jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
        chunk = jnp.take(entries, jnp.minimum(positions[0], LENGTH - 1), axis=1)
        positions = jnp.where(positions < ends[number], positions, LENGTH)
        return store.written(1, Rows.of(positions, table, LENGTH, PAGE), chunk)

    return jax.lax.fori_loop(0, (ends > 0).sum(), one_chunk, store)


def in_chunks(entries: Array, table: np.ndarray, cuts: set[int], dtype: str) -> tuple[PageStore, np.ndarray]:
    """The store, and what it holds of the rows, `[B, T, K, D]`."""
    starts, ends = np.zeros((2, LENGTH), np.int32)
    bounds = [0, *sorted(cuts), LENGTH]
    starts[: len(bounds) - 1], ends[: len(bounds) - 1] = bounds[:-1], bounds[1:]
    store = written(entries, jnp.asarray(table), starts, ends, dtype)
    return store, np.asarray(store.rows(1, jnp.asarray(table))[0])


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def table_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(BATCH * PER_ROW).reshape(BATCH, PER_ROW)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)), seed=st.integers(0, 99), size=st.sampled_from([1e-20, 1.0, 1e20]))
def test_what_is_stored_does_not_depend_on_chunks_and_places(
    dtype: str, cuts: set[int], seed: int, size: float
) -> None:
    """To the last bit; and each part is as close as its own largest value allows."""
    entries = draw(BATCH, LENGTH, HEADS, sum(PARTS), seed=seed) * np.float32(size)
    entries[..., PARTS[0] :] *= 100  # a rotary key beside its latent
    store, held = in_chunks(jnp.asarray(entries), table_of(seed), cuts, dtype)
    assert str(store.values.dtype) == dtype
    _, whole = in_chunks(jnp.asarray(entries), table_of(0), set(), dtype)
    np.testing.assert_array_equal(held, whole)
    for own, exact in zip(np.split(held, [PARTS[0]], -1), np.split(entries, [PARTS[0]], -1), strict=True):
        top = np.abs(exact).max(-1, keepdims=True)
        unit = top if dtype == "int8" else np.maximum(np.abs(exact), top * 2.0**-15)
        assert (np.abs(own - exact) <= 1.001 * HALF_STEP[dtype] * unit).all()


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_a_value_that_is_no_number_spoils_its_own_token_only(dtype: str) -> None:
    entries = draw(BATCH, LENGTH, HEADS, sum(PARTS), seed=1)
    entries[0, 3, 1, 2], entries[1, 7, 0, 0], entries[0, 5] = np.nan, np.inf, 0.0
    _, held = in_chunks(jnp.asarray(entries), table_of(1), {2, 4}, dtype)
    bad = ~np.isfinite(held).all(-1)
    assert np.argwhere(bad).tolist() == [[0, 3, 1], [1, 7, 0]]
    assert (held[bad][:, : PARTS[0]] == 0).all(), "a value is multiplied by 0 where it is not seen"
    assert (held[0, 5] == 0).all()


def test_attention_in_chunks_is_attention_at_once() -> None:
    """A chunk attends to its own tokens as they are stored, so it may end anywhere."""
    q, entries = (draw(BATCH, LENGTH, HEADS, sum(PARTS), seed=seed) for seed in (1, 2))
    table = jnp.asarray(table_of(0))

    @jax.jit
    def attend(store: PageStore, positions: Array) -> tuple[Array, PageStore]:
        rows = Rows.of(positions, table, LENGTH, PAGE)
        store = store.written(1, rows, jnp.asarray(entries)[:, positions[0]])
        return paged_attention(jnp.asarray(q)[:, positions[0]], store, 1, rows), store

    def outputs(*bounds: int) -> np.ndarray:
        store, outs = PageStore.empty((2, BATCH * PER_ROW, HEADS, PAGE), LATENT, "int8"), []
        for start, end in pairwise(bounds):
            out, store = attend(store, np.broadcast_to(np.arange(start, end), (BATCH, end - start)))
            outs.append(out)
        return np.concatenate(outs, axis=1)

    whole = outputs(0, LENGTH)
    np.testing.assert_allclose(outputs(0, 1, 7, LENGTH), whole, atol=1e-6, rtol=0)
    assert np.abs(whole).max() > 0.1
