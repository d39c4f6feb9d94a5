"""Canonical names: `stack` and `stack_like` undo `unstack`, and missing layers are named."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import abstract_params, init_params
from lifecycle.testing.families import random_params
from lifecycle.weights.names import stack_like, unstack

CONFIG = ModelConfig(
    vocab_size=32, d_model=8, d_ff=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, qk_norm="head"
)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(CONFIG)


def assert_equal(left: object, right: object) -> None:
    chex.assert_trees_all_equal(left, right, strict=True)


def test_every_layer_has_its_own_names(params: dict) -> None:
    flat = unstack(params)
    assert flat["blocks.2.attention.q"].shape == (8, 8)
    assert np.array_equal(flat["blocks.2.attention.q"], params["blocks"]["0+1"]["attention"]["q"][2])
    assert np.array_equal(flat["norm.scale"], params["norm"]["scale"])
    assert len(flat) == 3 * len(jax.tree.leaves(params["blocks"])) + 3


def test_stack_like_undoes_unstack_for_jax_and_numpy(params: dict) -> None:
    assert_equal(stack_like(unstack(params), params), params)
    host = jax.tree.map(np.asarray, params)
    restored = stack_like(unstack(host), host)
    assert_equal(restored, host)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert_equal(jax.jit(lambda flat: stack_like(flat, params))(jax.jit(unstack)(params)), params)


def test_optimizer_state_is_named_like_its_parameters(params: dict) -> None:
    state = optax.adamw(1e-3).init(params)
    flat = unstack(state)
    assert flat["0.mu.blocks.1.feed_forward.up"].shape == (8, 16) and flat["0.count"].shape == ()
    assert_equal(stack_like(flat, jax.eval_shape(lambda: state)), state)


def test_a_counter_below_blocks_stays_whole() -> None:
    tree = {"blocks": {"0+1": {"w": jnp.ones((2, 3)), "seen": jnp.zeros((), jnp.int32)}}}
    assert list(unstack(tree)) == ["blocks.0+1.seen", "blocks.0.w", "blocks.1.w"]
    assert_equal(stack_like(unstack(tree), tree), tree)


@pytest.mark.parametrize(("pattern", "num_layers"), [(("local", "global"), 3), (("local", "local", "global"), 3)])
def test_the_layers_of_a_pattern_keep_their_numbers(pattern: tuple, num_layers: int) -> None:
    """Layer by layer the same values, however they are stacked."""
    plain = CONFIG.model_copy(update={"num_layers": num_layers})
    periodic = plain.model_copy(update={"layer_pattern": pattern, "window": 4})
    flat, other = (unstack(init_params(config, jax.random.key(0))) for config in (plain, periodic))
    assert flat.keys() == other.keys() and len(abstract_params(periodic)["blocks"]) > 1
    assert all(np.array_equal(array, other[name]) for name, array in flat.items())
