"""Latent attention: the paper's formulas head by head, its gradients, and the cache that holds latents only.

Numbers of other implementations: `test_model_parity_golden.py`, DeepSeek V3. Meshes: `test_multidevice_families.py`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lifecycle.core.typing import Array
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.paged_rows import Rows
from lifecycle.kernels.rotary import rotary_angles
from lifecycle.model.cache import LayerCache, Stack, init_cache
from lifecycle.model.config import MlaConfig, ModelConfig, RopeScaling
from lifecycle.model.layers import Normed
from lifecycle.model.mla import LatentAttention

ONE_OP = 1e-5
ROWS, LENGTH = 2, 9
MLA = MlaConfig(q_lora_rank=10, kv_lora_rank=12, nope_head_dim=6, rope_head_dim=4, v_head_dim=5)
SIZES = ModelConfig(
    vocab_size=32, d_model=16, d_ff=32, num_layers=1, num_heads=3, num_kv_heads=3, head_dim=10, mla=MLA,
    compute_dtype="float32",
)  # fmt: skip
CONFIGS = {
    "latent queries": SIZES,
    "direct queries": SIZES.model_copy(update={"mla": MLA.model_copy(update={"q_lora_rank": None})}),
    "yarn": SIZES.model_copy(
        update={"rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=16, mscale_all_dim=1.0)}
    ),
}

type Weights = dict[str, Any]


def angles_and_mask(config: ModelConfig, positions: Array) -> tuple[Array, Mask]:
    """What the layer must know of tokens at these positions, which see each other and what a cache holds."""
    assert config.mla is not None
    angles = rotary_angles(positions, config.mla.rope_head_dim, config.rope_theta, config.rope_scaling)
    return angles, Mask(positions, positions)


def all_positions() -> Array:
    return jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))


def layer(config: ModelConfig) -> tuple[Any, Weights]:
    """The layer's definition and its weights, the norms' scales not one."""
    definition, state = nnx.split(nnx.eval_shape(lambda: LatentAttention(config, nnx.Rngs(0))))
    draw = np.random.default_rng(1)

    def value(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
        center, size = (1.0, 0.1) if path[-1].key == "scale" else (0.0, 0.25)
        return jnp.asarray(center + size * draw.standard_normal(shape.shape, np.float32))

    return definition, jax.tree.map_with_path(value, nnx.to_pure_dict(state))


def plain_attention(config: ModelConfig, weights: Weights, x: Array) -> Array:
    """Section 2.1 of DeepSeek-V2 as it stands there, one head at a time, positions as complex numbers."""
    m, scaling = config.mla, config.rope_scaling
    assert m is not None
    cos, sin = rotary_angles(all_positions(), m.rope_head_dim, config.rope_theta, scaling)[:, :, :, 0]

    def norm(x: Array, scale: Array) -> Array:
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def turned(x: Array) -> Array:
        pairs = (x[..., : m.rope_head_dim // 2] + 1j * x[..., m.rope_head_dim // 2 :]) * (cos + 1j * sin)
        return jnp.concatenate([pairs.real, pairs.imag], -1)

    if m.q_lora_rank is None:
        queries = x @ weights["q"]
    else:
        queries = norm(x @ weights["q_down"], weights["q_down_norm"]["scale"]) @ weights["q_up"]
    down = x @ weights["kv_down"]
    latent = norm(down[..., : m.kv_lora_rank], weights["kv_down_norm"]["scale"])
    key_turned = turned(down[..., m.kv_lora_rank :])
    seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    scale = config.head_dim**-0.5 * (1.0 if scaling is None else (0.1 * np.log(4.0) + 1) ** 2)
    outs = []
    for head in range(config.num_heads):
        query = queries[..., head * config.head_dim : (head + 1) * config.head_dim]
        both = latent @ jnp.split(weights["kv_up"], config.num_heads, axis=1)[head]
        key, value = both[..., : m.nope_head_dim], both[..., m.nope_head_dim :]
        scores = jnp.einsum("btd,bsd->bts", query[..., : m.nope_head_dim], key)
        scores += jnp.einsum("btd,bsd->bts", turned(query[..., m.nope_head_dim :]), key_turned)
        outs.append(jax.nn.softmax(jnp.where(seen, scores * scale, -jnp.inf), axis=-1) @ value)
    return jnp.concatenate(outs, -1) @ weights["o"]


def stack_of(config: ModelConfig, dtype: str = "float32") -> Stack:
    """The empty cache of the one layer."""
    (stack,) = init_cache(config, ROWS, LENGTH, dtype, page=LENGTH).stacks.values()
    assert not isinstance(stack, list)
    return stack


@partial(jax.jit, static_argnums=(0, 1))
def ours(config: ModelConfig, definition: Any, weights: Weights, x: Array) -> Array:
    return nnx.merge(definition, nnx.State(weights))(Normed(x, None), *angles_and_mask(config, all_positions()), None)[
        1
    ]


@partial(jax.jit, static_argnums=(0, 1))
def with_cache(
    config: ModelConfig, definition: Any, weights: Weights, x: Array, positions: Array, stack: Stack
) -> tuple[Array, Stack]:
    attention = nnx.merge(definition, nnx.State(weights))
    angles, mask = angles_and_mask(config, positions.reshape(1, -1))[0], Mask(positions, positions)
    rows = Normed(x.reshape(1, -1, x.shape[-1]), None)
    of_pages = Rows.of(positions, jnp.arange(ROWS)[:, None], LENGTH, LENGTH)  # a page holds a row
    _, found, cache = attention(rows, angles, mask, LayerCache(stack, 0, of_pages))
    return found.reshape(x.shape), cache.stack


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(function: Any, weights: Weights, x: Array, pull: Array) -> tuple[Array, Any]:
    out, back = jax.vjp(function, weights, x)
    return out, back(pull)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_gradients_are_those_of_the_paper(name: str) -> None:
    config = CONFIGS[name]
    definition, weights = layer(config)
    x, pull = drawn(2, ROWS, LENGTH, config.d_model)
    found, grads = value_and_gradients(partial(ours, config, definition), weights, x, pull)
    exact, exact_grads = value_and_gradients(partial(plain_attention, config), weights, x, pull)
    np.testing.assert_allclose(found, exact, atol=ONE_OP, rtol=0)
    for grad, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grads), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=ONE_OP * max(1, float(np.abs(wanted).max())), rtol=0)


@pytest.mark.parametrize("name", ["latent queries", "yarn", pytest.param("direct queries", marks=pytest.mark.slow)])
def test_on_the_latents_side_attention_is_the_same(name: str) -> None:
    """Chunks with a cache, where queries go to the latent, against the whole row, where the latent becomes keys."""
    config = CONFIGS[name]
    definition, weights = layer(config)
    x, positions = drawn(ROWS, LENGTH, config.d_model), np.asarray(all_positions())
    exact = np.asarray(ours(config, definition, weights, x))
    stack = stack_of(config)
    for start, stop in [(0, 4), (4, 5), (5, LENGTH)]:
        here = np.s_[:, start:stop]
        found, stack = with_cache(config, definition, weights, x[here], positions[here], stack)
        np.testing.assert_allclose(found, exact[here], atol=ONE_OP, rtol=0)
    (latents,) = jax.tree.leaves(stack)
    assert latents.shape == (1, ROWS, 1, 1, LENGTH, 12 + 4)  # a latent and one rotary key a token


@pytest.mark.parametrize(
    "name", ["latent queries", *(pytest.param(name, marks=pytest.mark.slow) for name in ("direct queries", "yarn"))]
)
def test_bfloat16_stays_bfloat16(name: str) -> None:
    config = CONFIGS[name]
    definition, weights = layer(config)
    x = drawn(ROWS, LENGTH, config.d_model)
    exact = np.asarray(ours(config, definition, weights, x))
    narrow, x = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), (weights, x))
    whole = ours(config, definition, narrow, x)
    cached, _ = with_cache(config, definition, narrow, x, all_positions(), stack_of(config, "bfloat16"))
    for found in (whole, cached):
        assert found.dtype == jnp.bfloat16
        assert np.sqrt(np.mean((np.asarray(found, np.float32) - exact) ** 2)) < 0.03 * exact.std()
