"""The decoder: parameters as a plain tree of arrays, and pure functions over them.

`flax.nnx` defines the layers and their initial values and stays out of the hot path: modules are split once into a
static definition and a tree of arrays, and merged only inside a trace. Layers that are alike are stacked on a leading
axis and applied by `jax.lax.scan` (`model/stacks.py`); on disk every layer has its own names (`weights/names.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int, PRNGKeyArray
from lifecycle.kernels.cross_entropy import project, soft_capped
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.rotary import rotary_angles
from lifecycle.model.block import Block, Trunk
from lifecycle.model.cache import KVCache, LayerCache, Stack
from lifecycle.model.config import LayerKind, ModelConfig, Remat
from lifecycle.model.layers import Angles, full_row
from lifecycle.model.pipeline import among_layers, run_pipeline, take_row, values
from lifecycle.model.remat import rematerialised
from lifecycle.model.routing import RouterStats
from lifecycle.model.stacks import LayerGroup, layer_groups
from lifecycle.parallel.collectives import all_gather, all_to_all, axis_index, axis_size, reduce_scatter, replicated
from lifecycle.parallel.placement import row_order

type Params = dict[str, Any]
type Stats = dict[str, RouterStats]  # of the routers, by stack; the arrays' leading axis is the layer

# On a CPU a scan over layers copies every saved activation into and out of its stack: a third of the step's time at the
# sizes that a CPU can train. Unrolling costs compile time, linear in the layers, so it stops here.
CPU_UNROLLED_LAYERS = 8

# Logical axes by the end of an array's path; the last entry that fits counts.
LOGICAL_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embed",): ("vocab", "embed"),
    ("head",): ("vocab", "embed"),
    ("scale",): (None,),
    ("attention", "q"): ("embed", "heads"),
    ("attention", "k"): ("embed", "kv_heads"),
    ("attention", "v"): ("embed", "kv_heads"),
    ("attention", "o"): ("heads", "embed"),
    ("q_bias",): ("heads",),
    ("k_bias",): ("kv_heads",),
    ("v_bias",): ("kv_heads",),
    ("o_bias",): (None,),
    ("sinks",): ("heads",),
    ("q_down",): ("embed", None),
    ("q_up",): ("embed", "heads"),  # its first dimension is the latent's, cut like d_model
    ("kv_down",): ("embed", None),
    ("kv_up",): ("embed", "heads"),
    ("gate",): ("embed", "mlp"),
    ("up",): ("embed", "mlp"),
    ("down",): ("mlp", "embed"),
    ("router",): ("embed", None),
    ("router_bias",): (None,),
    ("selection_bias",): (None,),
    ("experts", "gate"): ("experts", "expert_embed", "mlp"),
    ("experts", "up"): ("experts", "expert_embed", "mlp"),
    ("experts", "down"): ("experts", "mlp", "expert_embed"),
    ("experts", "gate_bias"): ("experts", "mlp"),
    ("experts", "up_bias"): ("experts", "mlp"),
    ("experts", "down_bias"): ("experts", None),
}
PROJECTION_NORMS = {"q_norm": "heads", "k_norm": "kv_heads"}  # cut when they span all heads
GATHERED = ("embed", "expert_embed")  # what of a layer's weights is put together before it is used
# Small, and added or multiplied where float32 is computed anyway.
KEPT_IN_FLOAT32 = ("scale", "router", "router_bias", "selection_bias", "sinks")


def init_params(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Fresh parameters in float32: the trunk's, and `blocks` by stack. Meant to run under `jax.jit` with
    `out_shardings`, so that no host holds a whole model."""
    trunk_key, *block_keys = jax.random.split(key, config.num_layers + 1)
    blocks: Params = {}
    for group in layer_groups(config):
        is_moe = config.is_moe(group.first)
        for place, name in enumerate(group.stacks):
            first = group.first + place
            keys = jnp.stack(block_keys[first : first + group.period * group.repeats : group.period])
            blocks[name] = jax.vmap(lambda k, m=is_moe: _arrays(Block(config, m, nnx.Rngs(k))))(keys)
    return {**_arrays(Trunk(config, nnx.Rngs(trunk_key))), "blocks": blocks}


def _arrays(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module))


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without any array."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def logical_axes(config: ModelConfig) -> Params:
    """A tree like the parameters' whose leaves are tuples of logical axis names."""
    is_cut = config.qk_norm == "projection"

    def names(path: tuple[Any, ...], _: Any) -> tuple[str | None, ...]:
        keys = tuple(entry.key for entry in path)
        cut = next((PROJECTION_NORMS[key] for key in keys if key in PROJECTION_NORMS), None) if is_cut else None
        own = logical_axes_of(keys) if cut is None else (cut,)
        return ("layers", *own) if keys[0] == "blocks" else own

    return jax.tree_util.tree_map_with_path(names, abstract_params(config))


def logical_axes_of(keys: tuple[str, ...]) -> tuple[str | None, ...]:
    """The logical axes of a parameter of one layer or of the trunk, whose path ends with `keys`."""
    return [axes for end, axes in LOGICAL_AXES.items() if keys[-len(end) :] == end][-1]


def compute_dtype(config: ModelConfig) -> str:
    return config.compute_dtype or ("float32" if platform() == "cpu" else "bfloat16")


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
    return forward_train(config, params, tokens, positions, segment_ids)[0]


def forward_train(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None = None,
    remat: Remat | None = None,
) -> tuple[Float[Array, "B T D"], Stats]:
    """`forward` with what a step needs: rematerialisation, and what the routers say, by stack (leading axis: layer).

    In a manual `jax.shard_map` the arrays are this device's part: rows over `batch`, positions over `seq` in the
    order of `row_order`; the hidden states' positions are cut over `norm_seq` as well, and their rows are `own_rows` of
    a pipeline.
    """
    num_shards, (rows, length) = axis_size("seq"), tokens.shape
    order = jnp.asarray(row_order(length * num_shards, num_shards)).reshape(num_shards, -1)[axis_index("seq")]
    queries = jnp.broadcast_to(order, tokens.shape)
    keys = jnp.broadcast_to(jnp.arange(length * num_shards), (rows, length * num_shards))
    key_segments = None if segment_ids is None else full_row(segment_ids)
    mask = Mask(queries, keys, segment_ids, key_segments, num_shards=num_shards)
    if axis_size("layers") > 1:
        x, stats = _pipelined(config, params, tokens, positions, mask, remat)
    else:
        x, stats, _ = _in_order(config, params, tokens, positions, mask, None, remat)
    return _last_norm(config, params, x), stats


def forward_cached(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: KVCache
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Hidden states of new tokens, each row going on from what `cache` holds of it, and the cache with them.

    The positions of a row's tokens are consecutive. A token at a position `>= cache.length` is padding, and behind the
    others: it writes nothing and its hidden state means nothing. In a manual `jax.shard_map` the arrays are this
    device's part: rows over `batch`, the cache's heads over `kv_heads`; the hidden states are alike over `tensor`.
    """
    with replicated("norm_seq"):
        mask = Mask(positions, positions)
        x, _, stacks = _in_order(config, params, tokens, positions, mask, cache.stacks, None)
        return _last_norm(config, params, x), replace(cache, stacks=stacks)


def _last_norm(config: ModelConfig, params: Params, x: Array) -> Array:
    trunk = nnx.merge(_definition(config, None), nnx.State({k: v for k, v in params.items() if k != "blocks"}))
    return trunk.norm(x)


def _in_order(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Mask,
    cache: dict[str, Stack] | None,
    remat: Remat | None,
) -> tuple[Array, Stats, dict[str, Stack]]:
    """The layers where a device has all of them, or its part of all."""
    angles = _angles(config, positions)
    x = embed(config, params["embed"], tokens)
    return _layers(config, params["blocks"], x, angles, mask, cache, remat, prepare=partial(_gathered, config))


def _pipelined(
    config: ModelConfig, params: Params, tokens: Array, positions: Array, mask: Mask, remat: Remat | None
) -> tuple[Array, Stats]:
    """The layers where each device of a pipeline has some of them; the rows that come back are `own_rows`.

    A stage's weights are gathered once for all rows, and their gradients scattered once.
    """

    def stage(weights: Params, x: Array, row: Array) -> tuple[Array, Stats]:
        own, angles = jax.tree.map(partial(take_row, row=row), mask), _angles(config, take_row(positions, row))
        x, stats, _ = _layers(config, weights, x, angles, own, None, remat, prepare=values)
        return x, stats

    x = embed(config, params["embed"], tokens)
    x, stats = run_pipeline(stage, _gathered(config, params["blocks"]), x)
    return x, among_layers(stats)


def _angles(config: ModelConfig, positions: Int[Array, "B T"]) -> dict[LayerKind, Angles | None]:
    """RoPE's angles in the layers of each kind; None where they have no positions."""
    dim, angles = config.rope_dim, dict[LayerKind, Angles | None]()
    for kind in dict.fromkeys(config.layer_pattern):
        if kind == "nope":
            angles[kind] = None
        elif kind == "local" and config.local_rope_theta is not None:
            angles[kind] = rotary_angles(positions, dim, config.local_rope_theta)
        else:
            angles[kind] = rotary_angles(positions, dim, config.rope_theta, config.rope_scaling)
    return angles


def _layers(
    config: ModelConfig,
    blocks: Params,
    x: Array,
    angles: dict[LayerKind, Angles | None],
    mask: Mask,
    cache: dict[str, Stack] | None,
    remat: Remat | None,
    *,
    prepare: Callable[[Params], Params],
) -> tuple[Array, Stats, dict[str, Stack]]:
    """Layer after layer; also what their routers say, and the cache, by stack. `prepare` turns a layer's part of
    `blocks` into what its products take."""
    stats: Stats = {}
    stacks: dict[str, Stack] = {}
    for group in layer_groups(config):
        definition, layers = _definition(config, config.is_moe(group.first)), list[Layer]()
        for kind in map(config.kind, range(group.first, group.first + group.period)):
            own = replace(mask, window=config.window if kind == "local" else None)
            layers.append(_layer(definition, angles[kind], own, prepare, remat))
        held = [None if cache is None else cache[name] for name in group.stacks]
        (x, held), found = _scan(layers, group, [blocks[name] for name in group.stacks], x, held)
        stats |= {name: own for name, own in zip(group.stacks, found, strict=True) if own is not None}
        stacks |= {name: stack for name, stack in zip(group.stacks, held, strict=True) if stack is not None}
    return x, stats, stacks


# A layer of its input, its weights, its stack of the cache, and its number in the stack.
type Layer = Callable[[Array, Params, Stack | None, Array], LayerOut]
type LayerOut = tuple[Array, RouterStats | None, Stack | None]


def _layer(
    definition: Any, angles: Angles | None, mask: Mask, prepare: Callable[[Params], Params], remat: Remat | None
) -> Layer:
    """`prepare` is part of what is computed again: gathered weights do not wait for the backward pass."""

    def layer(
        x: Array, weights: Params, stack: Stack | None, number: Array
    ) -> tuple[Array, RouterStats | None, Stack | None]:
        block = nnx.merge(definition, nnx.State(prepare(weights)))
        x, stats, view = block(x, angles, mask, None if stack is None else LayerCache(stack, number))
        return x, stats, None if view is None else view.stack

    return layer if remat is None else rematerialised(layer, remat)


def _scan(
    layers: list[Layer], group: LayerGroup, stacks: list[Params], x: Array, cache: list[Stack | None]
) -> tuple[tuple[Array, list[Stack | None]], list[RouterStats | None]]:
    """A group's layers, repeat by repeat; what the routers say comes back by stack."""

    def period(carry: Any, inputs: tuple[list[Params], Array]) -> tuple[Any, list[RouterStats | None]]:
        x, cache = carry
        weights, number = inputs
        found, after = list[RouterStats | None](), list[Stack | None]()
        for layer, own, stack in zip(layers, weights, cache, strict=True):
            x, stats, stack = layer(x, own, stack, number)
            found.append(stats)
            after.append(stack)
        return (x, after), found

    repeats = group.repeats // axis_size("layers")
    is_short = platform() == "cpu" and repeats * group.period <= CPU_UNROLLED_LAYERS
    return jax.lax.scan(period, (x, cache), (stacks, jnp.arange(repeats)), unroll=repeats if is_short else 1)


def _definition(config: ModelConfig, is_moe: bool | None) -> Any:
    """The static half of a block, or (None) of the trunk."""
    if is_moe is None:
        return nnx.split(nnx.eval_shape(lambda: Trunk(config, nnx.Rngs(0))))[0]
    return nnx.split(nnx.eval_shape(lambda: Block(config, is_moe, nnx.Rngs(0))))[0]


def _gathered(config: ModelConfig, weights: Params) -> Params:
    """The weights of a layer, or of stacks of layers, in the compute dtype, whole in `d_model`."""
    dtype = compute_dtype(config)

    def weight(path: tuple[Any, ...], array: Array) -> Array:
        keys = tuple(entry.key for entry in path)
        array = array if keys[-1] in KEPT_IN_FLOAT32 else _rounded(array, dtype)
        axes = logical_axes_of(keys)
        for dim, logical in enumerate(axes, start=array.ndim - len(axes)):
            array = all_gather(array, logical, dim) if logical in GATHERED else array
        return array

    return jax.tree_util.tree_map_with_path(weight, weights)


def _rounded(weight: Array, dtype: str) -> Array:
    """`weight.astype(dtype)`, such that what a step keeps is the float32 array.

    XLA moves a conversion to bfloat16 out of the loop over layers and keeps rounded copies of all layers' weights
    beside them: 1.5 of Mixtral's 17 GB on a v5p 4x4x4. It does not move this rounding within float32, which leaves
    nothing for the conversion to change.
    """
    if dtype == "bfloat16" and weight.dtype == jnp.float32:
        weight = jax.lax.reduce_precision(weight, exponent_bits=8, mantissa_bits=7)
    return weight.astype(dtype)


def embed(config: ModelConfig, table: Float[Array, "V D"], tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The tokens' rows of the table, in the compute dtype.

    Where the table is cut in `d_model`, each device looks up its columns for the tokens of all and they are exchanged:
    for 16,384 tokens of 4,096 dimensions an eighth of the bytes of gathering a table of 128,256 rows.
    """
    tokens = all_gather(tokens[None], "embed", 0)
    if axis_size("vocab") > 1:
        tokens = tokens - axis_index("vocab") * table.shape[0]
        is_here = (tokens >= 0) & (tokens < table.shape[0])
        rows = jnp.where(is_here[..., None], table[jnp.where(is_here, tokens, 0)], 0.0)
    else:
        rows = table[tokens]
    rows = all_to_all(rows.astype(compute_dtype(config)), "embed", 0, 3)[0]
    rows = reduce_scatter(rows, "norm_seq", 1)
    return rows * jnp.asarray(config.d_model**0.5, rows.dtype) if config.use_embed_scale else rows


def head(config: ModelConfig, params: Params) -> Float[Array, "V D"]:
    """The output projection as it lies in the parameters."""
    return params["embed" if config.tie_embeddings else "head"]


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Logits in float32. For a few positions; over whole rows use `kernels.cross_entropy`.

    Where the head is sharded in `d_model`, each device multiplies its columns of the head by those of all rows, and the
    partial sums are scattered to the rows' devices: for 8 rows of 8,192 dimensions on each of 4 devices, a 128th of the
    bytes of gathering the head.
    """
    rows = all_to_all(hidden.reshape(-1, hidden.shape[-1]), "embed", 1, 0)
    parts = project(rows, head(config, params).astype(hidden.dtype))
    own = all_gather(soft_capped(reduce_scatter(parts, "embed", 0), config.logits_soft_cap), "vocab", 1)
    return own.reshape(*hidden.shape[:-1], -1)
