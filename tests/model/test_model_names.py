"""Canonical names: `stack` and `stack_like` undo `unstack`, and missing layers are named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import init_params
from lifecycle.model.names import stack, stack_like, unstack

CONFIG = ModelConfig(
    vocab_size=32, d_model=8, d_ff=16, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, use_qk_norm=True
)


@pytest.fixture(scope="module")
def params() -> dict:
    return init_params(CONFIG, jax.random.key(0))


def assert_equal(left: object, right: object) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_every_layer_has_its_own_names(params: dict) -> None:
    flat = unstack(params)
    assert flat["blocks.2.attention.q"].shape == (8, 8)
    assert np.array_equal(flat["blocks.2.attention.q"], params["blocks"]["attention"]["q"][2])
    assert np.array_equal(flat["norm.scale"], params["norm"]["scale"])
    assert len(flat) == 3 * len(jax.tree.leaves(params["blocks"])) + 3


def test_stack_undoes_unstack_for_jax_and_numpy(params: dict) -> None:
    assert_equal(stack(unstack(params), 3), params)
    host = jax.tree.map(np.asarray, params)
    restored = stack(unstack(host), 3)
    assert_equal(restored, host)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert_equal(jax.jit(lambda flat: stack(flat, 3))(jax.jit(unstack)(params)), params)


def test_optimizer_state_is_named_like_its_parameters(params: dict) -> None:
    state = optax.adamw(1e-3).init(params)
    flat = unstack(state)
    assert flat["0.mu.blocks.1.feed_forward.up"].shape == (8, 16) and flat["0.count"].shape == ()
    assert_equal(stack_like(flat, jax.eval_shape(lambda: state)), state)


def test_a_counter_below_blocks_stays_whole() -> None:
    tree = {"blocks": {"w": jnp.ones((2, 3)), "seen": jnp.zeros((), jnp.int32)}}
    assert list(unstack(tree)) == ["blocks.seen", "blocks.0.w", "blocks.1.w"]
    assert_equal(stack_like(unstack(tree), tree), tree)


def test_missing_layers_and_weights_are_named(params: dict) -> None:
    flat = unstack(params)
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2\] are there, the model has layers 0 to 3"):
        stack(flat, 4)
    with pytest.raises(ValueError, match=r"the model has layers 0 to 1"):
        stack(flat, 2)
    with pytest.raises(ValueError, match=r"blocks\.1\.attention\.q is missing"):
        stack({name: array for name, array in flat.items() if name != "blocks.1.attention.q"}, 3)
