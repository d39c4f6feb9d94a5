"""Attention to a cache, in blocks, against the definition; and to the last bit whatever else the batch holds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels import cached
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.cached import cached_attention
from lifecycle.kernels.mask import Mask

ROWS, SLOTS, HEADS, GROUPS, DIM, VALUE_DIM = 3, 21, 6, 2, 8, 4
BLOCK = 6  # the last of four blocks begins within the third
CLOSE = 1e-6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "BLOCK", BLOCK)


def draw(*shape: int, seed: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def arrays(length: int) -> tuple[Array, Array, Array]:
    q = draw(ROWS, length, HEADS, DIM, seed=1)
    return q, draw(ROWS, GROUPS, SLOTS, DIM, seed=2), draw(ROWS, GROUPS, SLOTS, VALUE_DIM, seed=3)


def mask_of(newest: list[int], length: int, window: int | None = None) -> Mask:
    """The last `length` positions up to each row's newest one; a row whose newest is -1 has padding only."""
    positions = np.array(newest)[:, None] + np.arange(1 - length, 1)
    positions = np.where((positions < 0) | (np.array(newest) < 0)[:, None], SLOTS, positions)
    keys = np.where(np.arange(SLOTS) <= np.array(newest)[:, None], np.arange(SLOTS), SLOTS + 1)
    return Mask(jnp.asarray(positions), jnp.asarray(keys), window=window)


@partial(jax.jit, static_argnames=("soft_cap", "scale"))
def ours(q: Array, k: Array, v: Array, mask: Mask, num_used: Array, **options: Any) -> Array:
    return cached_attention(q, k, v, mask, num_used, **options)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 5}, {"soft_cap": 2.0, "scale": 0.3}, {"sinks": True}],
    ids=["plain", "window", "soft cap", "sinks"],
)
@settings(max_examples=15)
@given(newest=st.lists(st.integers(-1, SLOTS - 1), min_size=ROWS, max_size=ROWS))
def test_blocks_give_what_the_definition_gives(options: dict[str, Any], length: int, newest: list[int]) -> None:
    own = {name: value for name, value in options.items() if name not in ("window", "sinks")}
    if options.get("sinks"):
        own["sinks"] = draw(HEADS, seed=4)
    q, k, v = arrays(length)
    mask = mask_of(newest, length, options.get("window"))
    found = ours(q, k, v, mask, jnp.asarray(max(newest) + 1), **own)
    exact = reference_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, **own)
    is_token = np.asarray(mask.query_positions < SLOTS)
    np.testing.assert_allclose(found[is_token], exact[is_token], atol=CLOSE, rtol=0)
    if not is_token.all():
        padding = np.asarray(found)[~is_token]
        assert np.isfinite(padding).all()


@settings(max_examples=15)
@given(newest=st.lists(st.integers(0, SLOTS - 1), min_size=ROWS, max_size=ROWS), others=st.integers(0, SLOTS - 1))
def test_a_row_does_not_depend_on_the_longest_one(newest: list[int], others: int) -> None:
    """To the last bit, though more blocks are read for the others."""
    q, k, v = arrays(1)
    alone = [newest[0], -1, -1]
    first = ours(q, k, v, mask_of(newest, 1), jnp.asarray(max(newest) + 1))
    second = ours(q, k, v, mask_of(alone, 1), jnp.asarray(newest[0] + 1))
    third = ours(q, k, v, mask_of([newest[0], others, others], 1), jnp.asarray(max(newest[0], others) + 1))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[0], third[0])


def test_a_short_row_reads_no_more_than_its_blocks() -> None:
    """What is behind the blocks in use may be anything, NaN too."""
    q, k, v = arrays(1)
    mask, used = mask_of([BLOCK - 1] * ROWS, 1), jnp.asarray(BLOCK)
    clean = ours(q, k, v, mask, used)
    dirty = ours(q, k.at[:, :, BLOCK:].set(jnp.nan), v.at[:, :, BLOCK:].set(jnp.nan), mask, used)
    np.testing.assert_array_equal(clean, dirty)


def test_rows_in_a_larger_cache_are_read_from_their_first_one_on() -> None:
    q, k, v = arrays(4)
    mask, used = mask_of([SLOTS - 1, 3, 9], 4), jnp.asarray(SLOTS)
    others = [jnp.concatenate([x[:2] + 1, x, x[:1] - 1]) for x in (k, v)]
    np.testing.assert_array_equal(ours(q, *others, mask, used, first=jnp.asarray(2)), ours(q, k, v, mask, used))


def test_a_bfloat16_cache_is_read_in_the_queries_dtype() -> None:
    q, k, v = arrays(1)
    mask, used = mask_of([SLOTS - 1] * ROWS, 1), jnp.asarray(SLOTS)
    found = ours(q, k.astype(jnp.bfloat16), v.astype(jnp.bfloat16), mask, used)
    exact = ours(q, *(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (k, v)), mask, used)
    np.testing.assert_array_equal(found, exact)
