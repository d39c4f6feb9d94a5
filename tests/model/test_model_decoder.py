"""The decoder: parameter count, axes, packed rows as unpacked ones, and decoding with a cache as the full forward."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array
from lifecycle.model import decoder, layers
from lifecycle.model.cache import KeyValues, KVCache, init_cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token, num_params
from lifecycle.model.decoder import forward, forward_cached, forward_train
from lifecycle.model.embedding import head, logits
from lifecycle.model.params import abstract_params, compute_dtype, init_params, logical_axes
from lifecycle.parallel.axes import RULES, MeshConfig
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import objective_of
from lifecycle.testing.tiny_rows import MODEL
from tests.multidevice.meshes import DENSE, EXPERTS, PROJECTION

PACKED = 1e-5
CACHED = 1e-4
LENGTH, PAGE = 24, 4
ROWS = 4  # of each full forward pass: another number costs a compilation
CHUNK, CACHE = 6, LENGTH + 4  # of three rows that go on by chunks


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """The layers' weights twice their initial size, so that a mistake in them is not lost in the tolerance."""
    fresh = random_params(MODEL)
    return fresh | {"blocks": jax.tree.map(lambda x: 2 * x, fresh["blocks"])}


@partial(jax.jit, static_argnums=0)
def full_logits(config: ModelConfig, params: Any, tokens: Array, positions: Array, segment_ids: Array) -> Array:
    return logits(config, params, forward(config, params, tokens, positions, segment_ids))


@jax.jit
def cached_logits(params: Any, tokens: Array, positions: Array, cache: KVCache) -> tuple[Array, KVCache]:
    hidden, cache = forward_cached(MODEL, params, tokens, positions, cache)
    return logits(MODEL, params, hidden), cache


def tokens_of(rows: int, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, MODEL.vocab_size, (rows, length)).astype(np.int32)


def expected_logits(params: Any, tokens: np.ndarray | Array) -> np.ndarray:
    rows = np.zeros((ROWS, LENGTH), np.int32)
    rows[: tokens.shape[0], : tokens.shape[1]] = tokens
    positions = np.broadcast_to(np.arange(LENGTH), rows.shape)
    found = full_logits(MODEL, params, rows, positions, np.ones_like(rows))
    return np.asarray(found)[: tokens.shape[0], : tokens.shape[1]]


CONFIGS = st.builds(
    lambda heads, groups, **sizes: ModelConfig(num_heads=heads * groups, num_kv_heads=groups, **sizes),
    heads=st.integers(1, 3), groups=st.integers(1, 2), vocab_size=st.integers(1, 40), d_model=st.integers(1, 16),
    d_ff=st.integers(1, 16), num_layers=st.integers(1, 4), head_dim=st.sampled_from([2, 4, 6]),
    qk_norm=st.sampled_from(["none", "head", "projection"]), tie_embeddings=st.booleans(),
)  # fmt: skip


@settings(max_examples=25)
@given(CONFIGS)
def test_parameters_are_counted_and_every_one_has_its_axes(config: ModelConfig) -> None:
    shapes = abstract_params(config)
    assert num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    axes = logical_axes(config)
    all_names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    for shape, names in zip(jax.tree.leaves(shapes), all_names, strict=True):
        assert len(shape.shape) == len(names) and set(names) <= {*RULES, None}
    assert ("head" in shapes) != config.tie_embeddings
    assert ("q_norm" in shapes["blocks"]["0+1"]["attention"]) == (config.qk_norm != "none")


def test_flops_are_twice_the_weights_and_half_the_square_of_attention() -> None:
    weights = num_params(MODEL) - MODEL.vocab_size * MODEL.d_model  # the embedding is looked up, not multiplied
    scales = 5 * 32 + 4 * 8
    scores = 2 * 4 * 8 * 2 * 100 / 2  # layers, heads, head_dim, two products, half of 100 keys
    assert forward_flops_per_token(MODEL, 100) == 2 * (weights - scales + scores)


def test_a_config_that_cannot_be_is_refused() -> None:
    sizes = MODEL.plain()
    with pytest.raises(ValueError, match=r"num_heads=4 is not a multiple of num_kv_heads=3"):
        ModelConfig.model_validate(sizes | {"num_kv_heads": 3})
    with pytest.raises(ValueError, match=r"head_dim=7 is odd"):
        ModelConfig.model_validate(sizes | {"head_dim": 7})
    with pytest.raises(ConfigError, match=r"tokenizer has 97 ids, model\.vocab_size=96 is too small"):
        MODEL.with_vocab(97)
    assert MODEL.with_vocab(96) == MODEL


def test_the_compute_dtype_is_float32_on_a_cpu_unless_named(params: dict[str, Any]) -> None:
    config = MODEL.model_copy(update={"compute_dtype": None})
    assert compute_dtype(config) == "float32"
    narrow = MODEL.model_copy(update={"compute_dtype": "bfloat16"})
    tokens = tokens_of(2)
    positions = np.broadcast_to(np.arange(LENGTH), tokens.shape)
    hidden = jax.eval_shape(partial(forward, narrow), params, tokens, positions)
    assert hidden.dtype == jnp.bfloat16 and head(narrow, params).dtype == jnp.float32  # cast where it is multiplied
    found = full_logits(narrow, params, tokens, positions, np.ones_like(tokens))
    exact = expected_logits(params, tokens)
    assert found.dtype == jnp.float32
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.03 * exact.std()


def test_initial_values_keep_sizes_and_depend_on_the_key_only() -> None:
    config = MODEL.model_copy(update={"d_model": 128, "d_ff": 256})
    one, two, other = (jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, two, strict=True)
    blocks = one["blocks"]["0+1"]
    for array, std in (
        (one["embed"], 128**-0.5),
        (blocks["attention"]["q"], 128**-0.5),
        (blocks["attention"]["o"], (32 * 2 * 2) ** -0.5),
        (blocks["feed_forward"]["down"], (256 * 2 * 2) ** -0.5),
    ):
        assert np.std(array) == pytest.approx(std, rel=0.05)
    assert not np.array_equal(one["embed"], other["embed"])
    assert not np.array_equal(blocks["attention"]["q"][0], blocks["attention"]["q"][1])  # every layer has its own


def test_a_scan_gives_what_unrolled_layers_give(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = jnp.asarray(tokens_of(2))
    unrolled = expected_logits(params, tokens)
    monkeypatch.setattr(decoder, "CPU_UNROLLED_LAYERS", 0)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    scanned = jax.jit(lambda p: logits(MODEL, p, forward(MODEL, p, tokens, positions)))(params)
    np.testing.assert_allclose(scanned, unrolled, atol=PACKED, rtol=0)


def documents() -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, MODEL.vocab_size, length).astype(np.int32) for length in (7, 1, 9, 4)]


def batch_of(rows: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of whole documents, as the loader packs them, padded at the end."""
    names = ("tokens", "targets", "positions", "segment_ids", "loss_mask")
    batch = {name: np.zeros((len(rows), LENGTH), np.float32 if name == "loss_mask" else np.int32) for name in names}
    for row, texts in enumerate(rows):
        begin = 0
        for segment, text in enumerate(texts, 1):
            place = np.s_[row, begin : begin + len(text)]
            batch["tokens"][place], batch["positions"][place] = text, np.arange(len(text))
            batch["targets"][place] = np.append(text[1:], 0)
            batch["segment_ids"][place] = segment
            batch["loss_mask"][place] = np.arange(len(text)) < len(text) - 1
            begin += len(text)
    return batch


def test_packed_rows_equal_unpacked_ones(params: dict[str, Any]) -> None:
    texts = documents()
    packed, unpacked = batch_of([texts, [], [], []]), batch_of([[text] for text in texts])
    names = ("tokens", "positions", "segment_ids")
    one, many = (full_logits(MODEL, params, *(batch[n] for n in names)) for batch in (packed, unpacked))
    begin = 0
    for row, text in enumerate(texts):
        np.testing.assert_allclose(one[0, begin : begin + len(text)], many[row, : len(text)], atol=PACKED, rtol=0)
        begin += len(text)


@pytest.mark.slow
def test_packed_rows_have_the_summed_gradients_of_unpacked_ones(params: dict[str, Any]) -> None:
    texts = documents()
    step = jax.jit(jax.value_and_grad(lambda p, batch: objective_of("next_token", MODEL)(p, batch).loss))
    (one, grads), (many, expected) = (step(params, batch_of(r)) for r in ([texts], [[text] for text in texts]))
    np.testing.assert_allclose(one, many, rtol=1e-6)
    for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, exact, atol=PACKED * max(1, np.abs(exact).max()), rtol=0)


def keys_of(cache: KVCache) -> Array:
    """The keys and values of a model whose layers are one stack, `[L, B, 2, K, S, Dh]`."""
    (stack,) = cache.stacks.values()
    assert isinstance(stack, KeyValues)
    return stack.pages.values


def test_decoding_token_by_token_equals_the_full_forward(params: dict[str, Any]) -> None:
    tokens = tokens_of(2)
    expected = expected_logits(params, tokens)
    cache = init_cache(MODEL, 2, LENGTH, page=PAGE)
    for position in range(LENGTH):
        here = np.full((2, 1), position, np.int32)
        found, cache = cached_logits(params, tokens[:, position : position + 1], here, cache)
        np.testing.assert_allclose(found[:, 0], expected[:, position], atol=CACHED, rtol=0)


def test_chunks_of_unequal_rows_equal_the_full_forward(params: dict[str, Any]) -> None:
    """Rows of their own lengths go on by their own chunks in one batch; what a row does not fill is padding."""
    tokens = tokens_of(3)
    expected = expected_logits(params, tokens)
    done = np.zeros(3, int)
    cache = init_cache(MODEL, 3, CACHE, page=PAGE)
    for sizes in ([6, 2, 0], [1, 6, 3], [6, 0, 6], [5, 6, 6], [6, 4, 6], [0, 6, 3]):
        pieces, places = np.zeros((3, CHUNK), np.int32), np.full((3, CHUNK), CACHE, np.int32)
        for row, size in enumerate(sizes):
            pieces[row, :size] = tokens[row, done[row] : done[row] + size]
            places[row, :size] = np.arange(done[row], done[row] + size)
        found, cache = cached_logits(params, pieces, places, cache)
        for row, size in enumerate(sizes):
            exact = expected[row, done[row] : done[row] + size]
            np.testing.assert_allclose(found[row, :size], exact, atol=CACHED, rtol=0)
        done += sizes
    assert done.tolist() == [LENGTH] * 3


@pytest.mark.slow
def test_a_slot_is_used_again_without_being_cleared(params: dict[str, Any]) -> None:
    first, second = tokens_of(1, seed=1), tokens_of(1, 10, seed=2)
    cache = init_cache(MODEL, 1, LENGTH, page=PAGE)
    _, cache = cached_logits(params, first, np.arange(LENGTH)[None], cache)
    assert keys_of(cache).any(axis=(0, 2, 3, 5)).all()  # full to the last position
    found, _ = cached_logits(params, second, np.arange(10)[None], cache)
    np.testing.assert_allclose(found, expected_logits(params, second), atol=CACHED, rtol=0)


def test_padding_writes_nothing(params: dict[str, Any]) -> None:
    cache = init_cache(MODEL, 3, CACHE, page=PAGE)
    positions = np.full((3, CHUNK), CACHE, np.int32)
    positions[0, :2], positions[1, 1:3] = [0, 1], [CACHE + 1, 2**30]
    _, after = cached_logits(params, tokens_of(3, CHUNK), positions, cache)
    written = np.asarray(jnp.abs(keys_of(after)).sum((0, 2, 3, 5)) > 0)  # by page and position
    assert np.argwhere(written).tolist() == [[0, 0], [0, 1]]


def test_a_bfloat16_cache_stays_so_and_is_close(params: dict[str, Any]) -> None:
    tokens = tokens_of(1)
    cache = init_cache(MODEL, 1, LENGTH, "bfloat16", page=PAGE)
    found, cache = cached_logits(params, tokens, np.arange(LENGTH)[None], cache)
    exact = expected_logits(params, tokens)
    assert all(array.dtype == jnp.bfloat16 for array in jax.tree.leaves(cache.stacks))
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.02 * exact.std()


@pytest.mark.parametrize(
    "model",
    [pytest.param(DENSE, id="dense", marks=pytest.mark.long),
     pytest.param(PROJECTION, id="projection", marks=pytest.mark.long),
     pytest.param(EXPERTS, id="experts", marks=pytest.mark.long)],
)  # fmt: skip
def test_a_tpus_gradient_of_norms_and_products_is_that_of_others(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing kept and with all kept: norms before the branch and after it, biases, norms of heads, experts."""
    tokens, params = jnp.asarray(tokens_of(2)), random_params(model)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    names = model.remat_names(MeshConfig())

    def gradient(on: str, remat: Any) -> Any:
        monkeypatch.setattr(layers, "platform", lambda: on)
        of = jax.grad(lambda p: jnp.sin(forward_train(model, p, tokens, positions, None, remat)[0]).sum())
        return jax.jit(of)(params)

    exact = jax.tree.leaves(gradient("cpu", {}))
    for remat in ({}, dict.fromkeys(names, "save")):
        for found, wanted in zip(jax.tree.leaves(gradient("tpu", remat)), exact, strict=True):
            np.testing.assert_allclose(found, wanted, atol=PACKED * max(1.0, float(np.abs(wanted).max())), rtol=1e-4)
