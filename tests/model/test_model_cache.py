"""The cache: a window layer's ring against the dense cache and the full forward, its memory, rows, and its axes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels.mask import Mask
from lifecycle.model.cache import KeyValues, KVCache, LayerCache, Stack, init_cache
from lifecycle.model.config import MlaConfig, ModelConfig
from lifecycle.model.decoder import forward, forward_cached
from lifecycle.model.params import layers_apart
from lifecycle.parallel.mesh import RULES
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import MODEL

RING = 1e-6  # the keys of a ring come in another order than those of a dense cache, and so do their sums
CACHED = 1e-4
LENGTH, WINDOW = 24, 5
WINDOWS = (1, 2, 5, 12, LENGTH, LENGTH + 2)  # a ring of each is compiled for each width
WIDTHS = (3, 7, 11)  # of a chunk with its padding: each is compiled once
HEADS, KEY_HEADS, DIM = 4, 2, 8
WINDOWED = MODEL.model_copy(
    update={"layer_pattern": ("local", "local", "global"), "window": WINDOW, "num_layers": 7, "local_rope_theta": 100.0}
)
MLA = WINDOWED.model_copy(
    update={
        "mla": MlaConfig(kv_lora_rank=12, nope_head_dim=6, rope_head_dim=2, v_head_dim=5),
        "num_kv_heads": 4,
        "qk_norm": "none",
    }
)

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


def store(slots: int, rows: int = 1) -> KeyValues:
    return KeyValues(*jnp.zeros((2, 1, rows, KEY_HEADS, slots, DIM)), length=LENGTH)


def chunks_of(sizes: list[int]) -> list[tuple[int, int]]:
    ends = np.minimum(np.cumsum(sizes), LENGTH).tolist()
    return [(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def attend(stack: Stack, q: Array, k: Array, v: Array, mask: Mask) -> tuple[Array, Stack]:
    out, cache = LayerCache(stack, 0).attend(q, k, v, mask)
    return out, cache.stack


@settings(max_examples=30)
@given(
    window=st.sampled_from(WINDOWS),
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_a_ring_returns_what_a_dense_cache_returns(window: int, sizes: list[int], seed: int) -> None:
    """Chunks of any sizes, shorter and longer than the window, with padding behind them."""
    stacks = [store(slots) for slots in (min(window, LENGTH), LENGTH)]
    for start, end in chunks_of(sizes):
        size = end - start
        width = next(width for width in WIDTHS if width >= size)
        positions = jnp.asarray([[*range(start, end), *[LENGTH] * (width - size)]])
        q, k, v = (draw(1, width, heads, DIM, seed=seed + i) for i, heads in enumerate((4, 2, 2), start * 3))
        mask = Mask(positions, positions, window=window)
        (ring, one), (dense, other) = (attend(stack, q, k, v, mask) for stack in stacks)
        np.testing.assert_allclose(ring[:, :size], dense[:, :size], atol=RING, rtol=0)
        stacks = [one, other]


def run_cached(config: ModelConfig, params: Any, tokens: np.ndarray, cache: KVCache, sizes: list[int]) -> Array:
    """Hidden states of all tokens, in chunks of these sizes."""
    step, outs = jax.jit(partial(forward_cached, config)), []
    for start, end in chunks_of(sizes):
        positions = np.broadcast_to(np.arange(start, end), (len(tokens), end - start))
        hidden, cache = step(params, tokens[:, start:end], positions, cache)
        outs.append(hidden)
    return jnp.concatenate(outs, axis=1)


@pytest.mark.parametrize("config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents")])
@pytest.mark.slow
def test_a_model_with_windows_decodes_what_its_full_forward_says(config: ModelConfig) -> None:
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    exact = jax.jit(partial(forward, config))(params, tokens, positions)
    for sizes in ([1] * LENGTH, [3, 9, 1, 1, 8, 1, 1], [LENGTH]):
        found = run_cached(config, params, tokens, init_cache(config, 2, LENGTH), sizes)
        np.testing.assert_allclose(found, exact, atol=CACHED, rtol=0)


@pytest.mark.parametrize("config", [WINDOWED, MLA], ids=["key heads", "latents"])
def test_a_window_layer_keeps_a_window(config: ModelConfig) -> None:
    """Seven layers, five of them local: memory grows with the context in two only."""
    width = 2 * KEY_HEADS * DIM if config.mla is None else 12 + 2
    for length in (3, LENGTH, 1000):
        cache = jax.eval_shape(partial(init_cache, config, 2, length, "bfloat16"))
        num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        assert num_bytes == 2 * 2 * width * (5 * min(WINDOW, length) + 2 * length)
    assert set(cache.stacks) == {"0+3", "1+3", "2+3", "6+1"}


def test_a_row_is_used_again_without_being_cleared() -> None:
    params = random_params(WINDOWED)
    old, new = np.random.default_rng(1).integers(0, WINDOWED.vocab_size, (2, 1, LENGTH)).astype(np.int32)
    step = jax.jit(partial(forward_cached, WINDOWED))
    positions = np.arange(LENGTH)[None]
    cache = init_cache(WINDOWED, 1, LENGTH)
    fresh, _ = step(params, new[:, :3], positions[:, :3], cache)
    _, cache = step(params, old, positions, cache)
    used, _ = step(params, new[:, :3], positions[:, :3], cache)
    np.testing.assert_allclose(used, fresh, atol=RING, rtol=0)


def test_rows_of_padding_leave_a_ring_as_it_is() -> None:
    """One row goes on and another waits: by chunks and by single tokens."""
    stack = store(WINDOW, rows=2)
    for positions in ([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]], [[6, 7], [LENGTH, 2**30]], [[8], [LENGTH]]):
        places = jnp.asarray(positions)
        q, k, v = (draw(2, places.shape[1], heads, DIM, seed=heads) for heads in (4, 2, 2))
        _, after = attend(stack, q, k, v, Mask(places, places, window=WINDOW))
        if positions[1][0] == LENGTH:
            assert isinstance(stack, KeyValues) and isinstance(after, KeyValues)
            np.testing.assert_array_equal(after.keys[0, 1], stack.keys[0, 1])
            assert not np.array_equal(after.keys[0, 0], stack.keys[0, 0])
        stack = after


@pytest.mark.parametrize(
    "config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents", marks=pytest.mark.slow)]
)
def test_a_row_goes_on_in_its_place_and_leaves_the_others(config: ModelConfig) -> None:
    """As in a cache of its own: chunks, and a token."""
    params, step = random_params(config), jax.jit(partial(forward_cached, config))
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (1, 12)).astype(np.int32)
    full = jax.tree.map(lambda x: jnp.asarray(draw(*x.shape, seed=x.size)), init_cache(config, 3, LENGTH))
    cache, alone = full, init_cache(config, 1, LENGTH)
    for start, end in ((0, 7), (7, 11), (11, 12)):
        positions = np.arange(start, end)[None]
        found, cache = step(params, tokens[:, start:end], positions, cache.at_row(jnp.asarray(1)))
        cache = cache.at_row(None)
        exact, alone = step(params, tokens[:, start:end], positions, alone)
        np.testing.assert_allclose(found, exact, atol=RING, rtol=0)
    for leaf, before in zip(jax.tree.leaves(cache), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(leaf[:, jnp.array([0, 2])], before[:, jnp.array([0, 2])])


@pytest.mark.parametrize("config", [WINDOWED, MLA], ids=["key heads", "latents"])
def test_every_array_says_its_axes(config: ModelConfig) -> None:
    cache = init_cache(config, 2, LENGTH)
    names = jax.tree.leaves(cache.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for array, axes in zip(jax.tree.leaves(cache), names, strict=True):
        assert len(axes) == array.ndim and set(axes) <= {*RULES, None}
        assert axes[:2] == ("layers", "batch")
    assert ("kv_heads" in {axis for axes in names for axis in axes}) == (config.mla is None)


@pytest.mark.parametrize(
    "config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents", marks=pytest.mark.slow)]
)
def test_layers_apart_compute_what_stacked_ones_do(config: ModelConfig) -> None:
    """In weights and cache: a prompt in chunks, then tokens."""
    params = random_params(config)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    sizes = [7, 7, *[1] * 4]
    stacked = run_cached(config, params, tokens, init_cache(config, 2, LENGTH), sizes)
    own = init_cache(config, 2, LENGTH, is_apart=True)
    apart = run_cached(config, layers_apart(config, params), tokens, own, sizes)
    np.testing.assert_allclose(apart, stacked, atol=RING, rtol=0)
