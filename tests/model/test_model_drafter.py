"""The drafter: the states that it reads, unrolled steps against those with a cache, and its target as without it."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.model.cache import KVCache, init_cache
from lifecycle.model.config import DrafterConfig, ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.model.decoder import forward, forward_cached, forward_cached_taking, forward_taking
from lifecycle.model.drafter import VOCABULARY, block_config
from lifecycle.model.embedding import logits
from lifecycle.model.mtp import ahead
from lifecycle.model.params import Params, abstract_params, layers_apart
from lifecycle.model.prediction import draft_feature, draft_ids, draft_logits, draft_step, forward_drafts
from lifecycle.model.stacks import DRAFTER
from lifecycle.testing.families import random_params

MODEL = ModelConfig(
    vocab_size=24, d_model=16, d_ff=24, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, max_seq_len=32,
    compute_dtype="float32", drafter=DrafterConfig(vocab_size=10, d_ff=20, layers=(0, 1, 3)),
)  # fmt: skip
LAYERS = MODEL.drafter_layers
LENGTH, STEPS = 9, 3
IDS = np.array([1, 3, 4, 8, 9, 11, 15, 16, 20, 23])

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


@pytest.fixture(scope="module")
def params() -> Params:
    held = random_params(MODEL)
    held[DRAFTER][VOCABULARY] = {"ids": jnp.asarray(IDS, jnp.float32), "head": held["head"][IDS]}
    return held


def rows_of(tokens: np.ndarray) -> dict[str, Any]:
    """A batch whose rows are a document each."""
    batch, length = tokens.shape
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
        "segment_ids": np.ones((batch, length), np.int32),
        "loss_mask": np.ones((batch, length), np.float32),
    }


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return rows_of(np.random.default_rng(1).integers(0, MODEL.vocab_size, (2, LENGTH)).astype(np.int32))


def inputs(batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    return batch["tokens"], batch["positions"], batch["segment_ids"]


@jax.jit
def taking(params: Params, batch: dict[str, Any]) -> tuple[Array, Array]:
    return forward_taking(MODEL, params, *inputs(batch), LAYERS)


@jax.jit
def unrolled(params: Params, batch: dict[str, Any]) -> list[Array]:
    """The states of all steps, as training makes them."""
    taken = forward_taking(MODEL, params, *inputs(batch), LAYERS)[1]
    rows = [ahead(batch, depth) for depth in range(1, STEPS + 1)]
    return forward_drafts(MODEL, params, taken, rows, batch["segment_ids"])


def final(params: Params, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + MODEL.norm_eps) * np.asarray(params["norm"]["scale"])


@pytest.mark.slow
def test_what_is_taken_are_the_layers_inputs(params: Params, batch: dict[str, Any]) -> None:
    whole = jax.jit(forward, static_argnums=0)
    hidden, taken = taking(params, batch)
    np.testing.assert_allclose(hidden, whole(MODEL, params, *inputs(batch)), rtol=1e-6, atol=1e-7)
    for layer, x in zip(LAYERS, np.split(np.asarray(taken), 3, axis=-1), strict=True):
        if layer == 0:
            assert np.array_equal(x, params["embed"][batch["tokens"]])
            continue
        first = MODEL.model_copy(update={"num_layers": layer, "drafter": None})
        stack = jax.tree.map(lambda w, n=layer: w[:n], params["blocks"])
        expected = whole(first, {**params, "blocks": stack}, *inputs(batch))
        np.testing.assert_allclose(final(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_apart", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_pass_with_a_cache_takes_the_same(params: Params, batch: dict[str, Any], is_apart: bool) -> None:
    held = layers_apart(MODEL, params) if is_apart else params
    cache = init_cache(MODEL.target, 2, 16, is_apart=is_apart)
    tokens, positions, _ = inputs(batch)
    hidden, taken, kept = jax.jit(partial(forward_cached_taking, MODEL, layers=LAYERS))(held, tokens, positions, cache)
    np.testing.assert_allclose(taken, taking(params, batch)[1], rtol=1e-5, atol=1e-6)
    plain = jax.jit(partial(forward_cached, MODEL))(held, tokens, positions, cache)
    chex.assert_trees_all_close((hidden, kept), plain, rtol=1e-6, atol=1e-7)


def cached_steps(params: Params, batch: dict[str, Any], place: int, cache: KVCache) -> list[np.ndarray]:
    """The features that a decode makes after the tokens up to `place`: the target's at all these positions in one pass,
    then the drafter's own, one by one."""
    taken: Any = np.asarray(taking(params, batch)[1])
    feature, drafter = draft_feature(MODEL, params[DRAFTER], taken[:, : place + 1]), params[DRAFTER]
    features, following = [], jax.jit(partial(draft_step, MODEL))
    for step in range(STEPS):
        at = slice(0, place + 1) if step == 0 else slice(place + step, place + step + 1)
        tokens, positions = batch["tokens"][:, at.start + 1 : at.stop + 1], batch["positions"][:, at]
        feature, cache = following(drafter, params, feature, tokens, positions, cache)
        feature = feature[:, -1:]
        features.append(np.asarray(feature[:, 0]))
    return features


@pytest.mark.parametrize(
    "is_apart", [pytest.param(False, marks=pytest.mark.long), pytest.param(True, marks=pytest.mark.slow)]
)
def test_unrolled_steps_are_those_of_a_decode(params: Params, batch: dict[str, Any], is_apart: bool) -> None:
    states = [np.asarray(state) for state in unrolled(params, batch)]
    table = np.asarray(params[DRAFTER][VOCABULARY]["head"])
    for place in (0, 3, LENGTH - STEPS - 1):
        cache = init_cache(block_config(MODEL), 2, 16, is_apart=is_apart)
        for state, feature in zip(states, cached_steps(params, batch, place, cache), strict=True):
            scores = draft_logits(MODEL, params[DRAFTER], params, jnp.asarray(feature))
            np.testing.assert_allclose(state[:, place] @ table.T, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_document_sees_no_other(params: Params, batch: dict[str, Any]) -> None:
    cut = 4
    packed = batch | {
        "positions": np.concatenate([batch["positions"][:, :cut], batch["positions"][:, : LENGTH - cut]], 1),
        "segment_ids": np.repeat([[1] * cut + [2] * (LENGTH - cut)], 2, 0).astype(np.int32),
    }
    alone = rows_of(batch["tokens"][:, cut:])
    states = (jax.device_get(unrolled(params, rows)) for rows in (packed, alone))
    for depth, (both, one) in enumerate(zip(*states, strict=True), 1):
        end = LENGTH - cut - depth
        np.testing.assert_allclose(both[:, cut : cut + end], one[:, :end], rtol=1e-5, atol=1e-5)


def test_a_smaller_vocabulary_has_the_targets_logits_of_its_ids(params: Params) -> None:
    feature = jax.random.normal(jax.random.key(0), (3, MODEL.d_model))
    few = draft_logits(MODEL, params[DRAFTER], params, feature)
    own = {name: part for name, part in params[DRAFTER].items() if name != VOCABULARY}
    whole = MODEL.model_copy(update={"drafter": DrafterConfig(d_ff=20)})
    every = draft_logits(whole, own, params, feature)
    assert np.array_equal(draft_ids(MODEL, params[DRAFTER]), IDS) and draft_ids(whole, own).size == 24
    np.testing.assert_allclose(few, every[:, IDS], rtol=1e-5, atol=1e-7)
    normed = feature / np.sqrt((feature**2).mean(-1, keepdims=True) + MODEL.norm_eps) * own["norm"]["scale"]
    np.testing.assert_allclose(every, logits(MODEL.target, params, normed), rtol=1e-5)


def test_its_parameters_are_counted_without_the_copied_rows() -> None:
    drafter = abstract_params(MODEL)[DRAFTER]
    drafter.pop(VOCABULARY)
    size = sum(leaf.size for leaf in jax.tree.leaves(drafter))
    assert num_params(MODEL) - num_params(MODEL.target) == size


@pytest.mark.parametrize(("layers", "read"), [(30, (2, 15, 27)), (32, (2, 16, 29)), (6, (0, 3, 5)), (3, (0, 1, 2))])
def test_the_layers_that_it_reads_are_the_published_ones(layers: int, read: tuple[int, ...]) -> None:
    model = MODEL.model_copy(update={"num_layers": layers, "drafter": DrafterConfig()})
    assert model.drafter_layers == read
