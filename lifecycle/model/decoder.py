"""The decoder: parameters as a plain tree of arrays, and pure functions over them.

`flax.nnx` defines the layers and their initial values and stays out of the hot path: modules are split once into a
static definition and a tree of arrays, and merged only inside a trace. All layers are alike, so their arrays are
stacked on a leading axis and applied by `jax.lax.scan`; on disk every layer has its own names (`model/names.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.typing import Array, Float, Int, PRNGKeyArray
from lifecycle.kernels.attention import Mask
from lifecycle.kernels.cross_entropy import project
from lifecycle.kernels.rotary import rotary_angles
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers import Block, Trunk

type Params = dict[str, Any]

# On a CPU a scan over layers copies every saved activation into and out of its stack: a third of the step's time at the
# sizes that a CPU can train. Unrolling costs compile time, linear in the layers, so it stops here.
CPU_UNROLLED_LAYERS = 8

LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    "embed": ("vocab", "embed"),
    "head": ("vocab", "embed"),
    "q": ("embed", "heads"),
    "k": ("embed", "kv_heads"),
    "v": ("embed", "kv_heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "scale": (None,),
}


def _definitions(config: ModelConfig) -> tuple[Any, Any]:
    """The static halves of a block and of the trunk."""
    block = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))[0]
    return block, nnx.split(nnx.eval_shape(lambda: Trunk(config, nnx.Rngs(0))))[0]


def _arrays(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module))


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters in float32: the trunk's, and `blocks` with a leading layer axis. Meant to run under `jax.jit`
    with `out_shardings`, so that no host holds a whole model."""
    trunk_key, *block_keys = jax.random.split(key, config.num_layers + 1)
    blocks = jax.vmap(lambda k: _arrays(Block(config, nnx.Rngs(k))))(jnp.stack(block_keys))
    return {**_arrays(Trunk(config, nnx.Rngs(trunk_key))), "blocks": blocks}


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without any array."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def logical_axes(config: ModelConfig) -> Params:
    """A tree like the parameters' whose leaves are tuples of logical axis names."""

    def names(path: tuple[Any, ...], _: Any) -> tuple[str | None, ...]:
        keys = [entry.key for entry in path]
        own = LOGICAL_AXES[keys[-1]]
        return ("layers", *own) if keys[0] == "blocks" else own

    return jax.tree_util.tree_map_with_path(names, abstract_params(config))


def compute_dtype(config: ModelConfig) -> str:
    return config.compute_dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """Hidden states after the last norm. Attention is causal and stays within a segment.

    `positions` restart in each segment (they set the rotary angles); within a row, order is the index.
    """
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = Mask(index, index, segment_ids, segment_ids)
    return _run(config, params, tokens, positions, mask, None)[0]


def forward_cached(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: KVCache
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Hidden states of new tokens, each row going on from what `cache` holds of it, and the cache with them.

    A token at a position `>= cache.length` is padding: it writes nothing and its hidden state means nothing.
    """
    keys = jnp.broadcast_to(jnp.arange(cache.length), (tokens.shape[0], cache.length))
    hidden, new_cache = _run(config, params, tokens, positions, Mask(positions, keys), cache)
    assert new_cache is not None
    return hidden, new_cache


def _run(
    config: ModelConfig, params: Params, tokens: Array, positions: Array, mask: Mask, cache: KVCache | None
) -> tuple[Array, KVCache | None]:
    block_def, trunk_def = _definitions(config)
    dtype = compute_dtype(config)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    trunk = nnx.merge(trunk_def, nnx.State({k: v for k, v in params.items() if k != "blocks"}))
    angles = rotary_angles(positions, config.head_dim, config.rope_theta)

    def layer(carry: tuple[Array, KVCache | None], inputs: tuple[Params, Array]) -> tuple[Any, None]:
        x, cache = carry
        block_params, index = inputs
        block = nnx.merge(block_def, nnx.State(block_params))
        x, view = block(x, angles, mask, cache.layer(index) if cache is not None else None)
        return (x, view.whole if view is not None else None), None

    unroll = config.num_layers if jax.default_backend() == "cpu" and config.num_layers <= CPU_UNROLLED_LAYERS else 1
    layers = (params["blocks"], jnp.arange(config.num_layers))
    (x, cache), _ = jax.lax.scan(layer, (trunk.embed[...][tokens], cache), layers, unroll=unroll)
    return trunk.norm(x), cache


def head(config: ModelConfig, params: Params) -> Float[Array, "V D"]:
    """The output projection, in the compute dtype."""
    return params["embed" if config.tie_embeddings else "head"].astype(compute_dtype(config))


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Logits in float32. For a few positions; over whole rows use `kernels.cross_entropy`."""
    return project(hidden, head(config, params))
