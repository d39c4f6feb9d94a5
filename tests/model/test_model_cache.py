"""The cache: pages against the full forward, their memory, what a row writes, and the axes of the arrays."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.model.cache import KVCache, init_cache, init_pages, page_kinds
from lifecycle.model.config import CacheFormat, MlaConfig, ModelConfig
from lifecycle.model.decoder import forward, forward_cached
from lifecycle.model.params import layers_apart
from lifecycle.parallel.mesh import RULES
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import MODEL

SAME = 1e-6  # sums in another order
CACHED = 1e-4
LENGTH, WINDOW, PAGE = 24, 5, 4
KEY_HEADS, DIM = 2, 8
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


def cache_of(config: ModelConfig, rows: int, **options: Any) -> KVCache:
    return init_cache(config, rows, LENGTH, page=PAGE, **options)


def chunks_of(sizes: list[int]) -> list[tuple[int, int]]:
    ends = np.minimum(np.cumsum(sizes), LENGTH).tolist()
    return [(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STEP = jax.jit(forward_cached, static_argnums=0)  # chunks of seven tokens and of one, so that few are compiled


def run_cached(
    config: ModelConfig, params: Any, tokens: np.ndarray, cache: KVCache, sizes: list[int]
) -> tuple[np.ndarray, KVCache]:
    """Hidden states of all tokens, in chunks of these sizes, and the cache after them."""
    outs = []
    for start, end in chunks_of(sizes):
        positions = np.broadcast_to(np.arange(start, end), (len(tokens), end - start))
        hidden, cache = STEP(config, params, tokens[:, start:end], positions, cache)
        outs.append(np.asarray(hidden))
    return np.concatenate(outs, axis=1), cache


@pytest.mark.parametrize(
    "config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents", marks=pytest.mark.long)]
)
@pytest.mark.long
def test_a_model_with_windows_decodes_what_its_full_forward_says(config: ModelConfig) -> None:
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    exact = jax.jit(partial(forward, config))(params, tokens, positions)
    for sizes in ([1] * LENGTH, [1, 7, 1, 7, 7, 1]):
        found, _ = run_cached(config, params, tokens, cache_of(config, 2), sizes)
        np.testing.assert_allclose(found, exact, atol=CACHED, rtol=0)


@pytest.mark.parametrize("config", [WINDOWED, MLA], ids=["key heads", "latents"])
def test_window_layers_have_pages_of_their_own(config: ModelConfig) -> None:
    """Seven layers, five of them local: a store of 3 pages for those and 10 for the others."""
    width = 2 * KEY_HEADS * DIM if config.mla is None else 12 + 2
    cache = jax.eval_shape(lambda: init_pages(config, {"window": 3, "full": 10}, 40, "bfloat16", page=PAGE))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert num_bytes == 2 * width * PAGE * (5 * 3 + 2 * 10)
    assert set(cache.stacks) == {"0+3", "1+3", "2+3", "6+1"} and page_kinds(config) == ["window", "full"]


@pytest.mark.slow
def test_pages_are_used_again_without_being_cleared() -> None:
    params = random_params(WINDOWED)
    old, new = np.random.default_rng(1).integers(0, WINDOWED.vocab_size, (2, 2, LENGTH)).astype(np.int32)
    cache = cache_of(WINDOWED, 2)
    fresh, _ = run_cached(WINDOWED, params, new, cache, [7])
    _, cache = run_cached(WINDOWED, params, old, cache, [7, 7, 7, 1, 1, 1])
    used, _ = run_cached(WINDOWED, params, new, cache, [7])
    np.testing.assert_allclose(used, fresh, atol=SAME, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents", marks=pytest.mark.long)]
)
def test_a_row_writes_into_its_pages_only_wherever_they_are(config: ModelConfig) -> None:
    """As in a cache of its own: chunks, and a token; padding beside it writes nothing."""
    params, step = random_params(config), partial(STEP, config)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (1, 15)).astype(np.int32)
    fresh, alone = cache_of(config, 3), cache_of(config, 1)
    stacks = jax.tree.map(lambda x: jnp.asarray(draw(*x.shape, seed=x.size)), fresh.stacks)
    per_row = LENGTH // PAGE
    mine = np.random.default_rng(4).permutation(3 * per_row)[:per_row]
    tables: Any = dict.fromkeys(fresh.tables, jnp.asarray(mine[None], jnp.int32))
    cache = full = KVCache(stacks, tables, LENGTH, PAGE)
    for start, end in ((0, 7), (7, 14), (14, 15)):
        positions = np.arange(start, end)[None]
        found, cache = step(params, tokens[:, start:end], positions, cache)
        exact, alone = step(params, tokens[:, start:end], positions, alone)
        np.testing.assert_allclose(found, exact, atol=SAME, rtol=0)
    _, cache = step(params, tokens[:, :1], np.array([[LENGTH]]), cache)
    others = np.setdiff1d(np.arange(3 * per_row), mine[: -(-15 // PAGE)])
    for leaf, before in zip(jax.tree.leaves(cache.stacks), jax.tree.leaves(full.stacks), strict=True):
        np.testing.assert_array_equal(leaf[:, others], before[:, others])
        assert not np.array_equal(leaf, before)


@pytest.mark.parametrize("config", [WINDOWED, MLA], ids=["key heads", "latents"])
def test_pages_of_8_bits_take_a_quarter_and_their_scales(config: ModelConfig) -> None:
    def num_bytes(kv_cache: CacheFormat | None) -> int:
        cache = jax.eval_shape(lambda: init_cache(config, 1, LENGTH, page=PAGE, kv_cache=kv_cache).stacks)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))

    scales = 2 if config.mla is not None else 2 * KEY_HEADS  # latent and rotary key; a head's key and value
    for kv_cache in ("int8", "fp8"):
        assert num_bytes(kv_cache) == num_bytes(None) / 4 + 4 * scales * LENGTH * config.num_layers


@pytest.mark.parametrize(
    ("config", "kv_cache"),
    [
        pytest.param(WINDOWED, "int8", id="key heads", marks=pytest.mark.long),
        pytest.param(MLA, "int8", id="latents", marks=pytest.mark.long),
        pytest.param(WINDOWED, "fp8", id="fp8", marks=pytest.mark.long),
        pytest.param(MLA, "fp8", id="fp8 latents", marks=pytest.mark.long),
    ],
)
def test_a_model_with_pages_of_8_bits_is_close_to_itself(config: ModelConfig, kv_cache: CacheFormat) -> None:
    """A prompt in chunks, then tokens."""
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    sizes = [7, 7, *[1] * 10]
    exact, _ = run_cached(config, params, tokens, cache_of(config, 2), sizes)
    found, _ = run_cached(config, params, tokens, cache_of(config, 2, kv_cache=kv_cache), sizes)
    error = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
    assert 0 < error < {"int8": 0.02, "fp8": 0.05}[kv_cache]


@pytest.mark.parametrize("kv_cache", [None, "int8"])
@pytest.mark.parametrize("config", [WINDOWED, MLA], ids=["key heads", "latents"])
def test_every_array_says_its_axes(config: ModelConfig, kv_cache: CacheFormat | None) -> None:
    cache = cache_of(config, 2, kv_cache=kv_cache)
    named = cache.logical_axes()
    assert set(named.tables.values()) == {("batch", None)}
    names = jax.tree.leaves(named.stacks, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for array, axes in zip(jax.tree.leaves(cache.stacks), names, strict=True):
        assert len(axes) == array.ndim and set(axes) <= {*RULES, None}
        assert axes[:2] == ("layers", "batch")
    assert ("kv_heads" in {axis for axes in names for axis in axes}) == (config.mla is None)


@pytest.mark.slow  # of windows; without them decoding is compared in `tests/inference/test_inference_engine.py`
@pytest.mark.parametrize(
    "config", [pytest.param(WINDOWED, id="key heads"), pytest.param(MLA, id="latents", marks=pytest.mark.long)]
)
def test_layers_apart_compute_what_stacked_ones_do(config: ModelConfig) -> None:
    """In weights and cache: a prompt in chunks, then tokens."""
    params = random_params(config)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (2, LENGTH)).astype(np.int32)
    sizes = [7, 7, *[1] * 4]
    stacked, _ = run_cached(config, params, tokens, cache_of(config, 2), sizes)
    own = cache_of(config, 2, is_apart=True)
    apart, _ = run_cached(config, layers_apart(config, params), tokens, own, sizes)
    np.testing.assert_allclose(apart, stacked, atol=SAME, rtol=0)
