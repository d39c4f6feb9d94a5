"""The decoder: pure functions over a model's parameters (`model/params.py`).

Embedding, layers, final norm. RoPE's angles and the attention mask are computed once for all layers. Layers of equal
structure are stacked, and `jax.lax.scan` applies a stack.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.paged_rows import Rows
from lifecycle.kernels.rotary import rotary_angles
from lifecycle.model.cache import KVCache, LayerCache, Stack
from lifecycle.model.config import LayerKind, ModelConfig, Precision, Remat
from lifecycle.model.cut_hidden import cuts_hidden, to_rows
from lifecycle.model.embedding import embed
from lifecycle.model.gathering import gathered
from lifecycle.model.layers import Angles, Hidden, for_layer, full_row
from lifecycle.model.lora import adapted_blocks, trained_apart
from lifecycle.model.mtp import own_positions
from lifecycle.model.params import (
    Params,
    block_definition,
    parameters,
    trunk_definition,
)
from lifecycle.model.pipeline import among_layers, run_pipeline, take_row, values
from lifecycle.model.remat import rematerialised
from lifecycle.model.routing import RouterStats
from lifecycle.model.stacks import ADAPTER, DRAFTER, MODULES, REFERENCE, SCORE, LayerGroup, layer_groups
from lifecycle.model.taken import Taken
from lifecycle.parallel.collectives import (
    axis_size,
    hidden_cut,
    replicated,
)

type Stats = dict[str, RouterStats]  # router statistics by stack; the arrays' leading axis is the layer
type Caches = dict[str, Stack | list[Stack]]  # KV caches by stack
# (a layer's declarations, its weights) -> the weights as its products use them
type Prepare = Callable[[Params, Params], Params]

# On a CPU a scan over layers copies every saved activation into and out of its stack: a third of the step's time at the
# sizes that a CPU can train. Unrolling costs compile time, linear in the number of layers: above this many we scan.
CPU_UNROLLED_LAYERS = 8


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "b t D"]:
    """Hidden states after the final norm. Attention is causal and stays within a segment.

    `positions` set the rotary angles and restart in each segment; the causal mask uses a token's index in its row.
    """
    return forward_train(config, params, tokens, positions, segment_ids)[0]


def forward_train(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None = None,
    remat: Remat | None = None,
    precision: Precision | None = None,
    noisy: Callable[[Float[Array, "B t D"]], Float[Array, "B t D"]] | None = None,
) -> tuple[Float[Array, "b t D"], Stats]:
    """`forward` for a training step: with rematerialisation, with the layers' products in a `precision`, with what
    `noisy` makes of the embeddings, and with the routers' statistics.

    In a manual `jax.shard_map` the arrays are this device's shards: rows over `batch`, positions over `seq` in the
    order of `row_order`. The hidden states' positions are sharded over `norm_seq` too; in a pipeline their rows are
    those of `own_rows`.
    """
    mask, x = causal_mask(tokens.shape, segment_ids), embed(config, params["embed"], tokens)
    x = x if noisy is None else noisy(x)
    if axis_size("layers") > 1:
        x, stats = _pipelined(config, params, x, positions, mask, remat, precision)
        hidden = for_layer(config, x)
    else:
        angles = angles_of(config, positions)
        prepare = partial(gathered, config, precision=precision)
        blocks = adapted_blocks(config.adapter, params)
        hidden, stats, _, _ = _layers(config, blocks, x, angles, mask, prepare, remat=remat)
    return _final_norm(config, params, hidden), stats


def forward_taking(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    layers: tuple[int, ...],
) -> tuple[Float[Array, "b t D"], Float[Array, "b t columns"]]:
    """`forward`, and the inputs of `layers` side by side; without a pipeline."""
    mask, x = causal_mask(tokens.shape, segment_ids), embed(config, params["embed"], tokens)
    prepare = partial(gathered, config)
    hidden, _, _, taken = _layers(
        config, params["blocks"], x, angles_of(config, positions), mask, prepare, layers_taken=layers
    )
    states = taken.side_by_side()
    assert states is not None, "some layers are taken"
    return _final_norm(config, params, hidden), states


def forward_cached(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: KVCache
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Hidden states of new tokens, each row continuing the tokens in `cache`, and the cache with the new ones.

    The positions of a row's tokens are consecutive. A token at a position `>= cache.length` is padding and comes after
    the others: it is not cached, and its hidden state is undefined. In a manual `jax.shard_map` the arrays are this
    device's shards: rows and pages over `batch`, the cache's heads over `kv_heads`; hidden states are replicated over
    `tensor`. Stacks of weights and of the cache may be lists of layers, both or neither.
    """
    hidden, _, cache = forward_cached_taking(config, params, tokens, positions, cache, ())
    return hidden, cache


def forward_cached_taking(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KVCache,
    layers: tuple[int, ...],
) -> tuple[Float[Array, "B T D"], Float[Array, "B T columns"] | None, KVCache]:
    """`forward_cached`, and the inputs of `layers` side by side, None of no layers: the hidden states, these, and the
    cache."""
    mask = Mask(positions, positions)
    with replicated("norm_seq"), hidden_cut(cuts_hidden(params["blocks"], tokens.size, config.d_model)):
        # Tokens on one axis, which only attention divides into rows: of rows of one token a TPU's tiles are half empty
        tokens, flat = tokens.reshape(1, -1), positions.reshape(1, -1)
        x, angles = embed(config, params["embed"], tokens), angles_of(config, flat)
        hidden, _, caches, taken = _layers(
            config, params["blocks"], x, angles, mask, partial(gathered, config), cache, layers_taken=layers
        )
        hidden, states = to_rows(_final_norm(config, params, hidden)), taken.side_by_side()
    taken_states = None if states is None else states.reshape(*positions.shape, -1)
    return hidden.reshape(*positions.shape, -1), taken_states, replace(cache, stacks=caches)


def causal_mask(shape: tuple[int, ...], segment_ids: Array | None) -> Mask:
    """The mask of this device's queries over the keys of their full rows."""
    (rows, length), num_shards = shape, axis_size("seq")
    queries = jnp.broadcast_to(own_positions(length), shape)
    keys = jnp.broadcast_to(jnp.arange(length * num_shards), (rows, length * num_shards))
    key_segments = None if segment_ids is None else full_row(segment_ids)
    return Mask(queries, keys, segment_ids, key_segments, num_shards=num_shards)


def _pipelined(
    config: ModelConfig,
    params: Params,
    x: Array,
    positions: Array,
    mask: Mask,
    remat: Remat | None,
    precision: Precision | None,
) -> tuple[Array, Stats]:
    """The layers in a pipeline, where each device has some of the layers; returns the rows of `own_rows`.

    A stage's weights are gathered once for all rows, and their gradients scattered once; weights beside an adapter have
    none.
    """
    blocks, declared = adapted_blocks(config.adapter, params), parameters(config.target)["blocks"]
    weights = gathered(config, declared, blocks, precision)
    trained, whole = (weights, lambda held: held) if config.adapter is None else trained_apart(weights)

    def stage(trained: Params, x: Array, row: Array) -> tuple[Array, Stats]:
        angles, row_mask = angles_of(config, take_row(positions, row)), jax.tree.map(partial(take_row, row=row), mask)
        held = whole(trained)
        hidden, stats, *_ = _layers(config, held, x, angles, row_mask, lambda _, layer: values(layer), remat=remat)
        return hidden.x, stats

    x, stats = run_pipeline(stage, trained, x)
    return x, among_layers(stats)


def angles_of(config: ModelConfig, positions: Int[Array, "B T"]) -> dict[LayerKind, Angles | None]:
    """RoPE's angles for each kind of layer; None for layers without RoPE."""
    angles: dict[LayerKind, Angles | None] = {}
    for kind in dict.fromkeys(config.layer_pattern):
        if kind == "nope":
            angles[kind] = None
        elif kind == "local" and config.local_rope_theta is not None:
            angles[kind] = rotary_angles(positions, config.rope_dim, config.local_rope_theta)
        else:
            angles[kind] = rotary_angles(positions, config.rope_dim, config.rope_theta, config.rope_scaling)
    return angles


def _layers(
    config: ModelConfig,
    blocks: Params,
    x: Array,
    angles: dict[LayerKind, Angles | None],
    mask: Mask,
    prepare: Prepare,
    cache: KVCache | None = None,
    remat: Remat | None = None,
    layers_taken: tuple[int, ...] = (),
) -> tuple[Hidden, Stats, Caches, Taken]:
    """Applies all layers of `blocks`; also returns the routers' statistics, the caches with the new tokens, and the
    inputs of `layers_taken`."""
    hidden, taken = for_layer(config, x), Taken.of(layers_taken, x)
    stats: Stats = {}
    new_caches: Caches = {}
    for group in layer_groups(config):
        definition, declared = block_definition(config, config.is_moe(group.first))
        layers: list[Layer] = []
        for kind in map(config.kind, range(group.first, group.first + group.period)):
            layer_mask = replace(mask, window=config.window if kind == "local" else None)
            rows = None if cache is None else cache.rows(mask.query_positions, kind, config.window)
            layers.append(_layer(definition, angles[kind], layer_mask, partial(prepare, declared), remat, rows))
        stacks: list[Any] = [None if cache is None else cache.stacks[name] for name in group.stacks]
        weights = [blocks[name] for name in group.stacks]
        apply = _one_by_one if isinstance(weights[0], list) else _scan
        (hidden, stacks, taken), group_stats = apply(layers, group, weights, (hidden, stacks, taken))
        stats |= {name: one for name, one in zip(group.stacks, group_stats, strict=True) if one is not None}
        new_caches |= {name: stack for name, stack in zip(group.stacks, stacks, strict=True) if stack is not None}
    return hidden, stats, new_caches, taken


# A function of a layer's input, its weights, its stack of the cache, and its number in that stack.
type Layer = Callable[[Hidden, Params, Stack | None, Array | int], LayerOut]
type LayerOut = tuple[Hidden, RouterStats | None, Stack | None]
# What goes through a group's layers: hidden states, its stacks of the cache, the layers' inputs that are taken.
type Carry = tuple[Hidden, list[Any], Taken]


def _layer(
    definition: Any,
    angles: Angles | None,
    mask: Mask,
    prepare: Callable[[Params], Params],
    remat: Remat | None,
    rows: Rows | None,
) -> Layer:
    """One layer. `prepare` is inside the checkpoint: gathered weights are gathered again, not saved for backward.
    `rows`: of the tokens that a cache gets."""

    def layer(hidden: Hidden, weights: Params, stack: Stack | None, number: Array | int) -> LayerOut:
        block = nnx.merge(definition, nnx.State(prepare(weights)))
        seen = None if stack is None or rows is None else LayerCache(stack, number, rows)
        hidden, stats, cache = block(hidden, angles, mask, seen)
        return hidden, stats, None if cache is None else cache.stack

    return layer if remat is None else rematerialised(layer, remat)


def one_layer(config: ModelConfig, number: int, positions: Int[Array, "B T"]) -> Callable[[Hidden, Params], Hidden]:
    """The function of a layer's input and its weights that gives its output, of rows without padding."""
    kind = config.kind(number)
    mask = replace(causal_mask(positions.shape, None), window=config.window if kind == "local" else None)
    definition, _ = block_definition(config, config.is_moe(number))
    layer = _layer(definition, angles_of(config, positions)[kind], mask, lambda weights: weights, None, None)
    return lambda hidden, weights: layer(hidden, weights, None, 0)[0]


def _scan(
    layers: list[Layer], group: LayerGroup, weights: list[Params], carry: Carry
) -> tuple[Carry, list[RouterStats | None]]:
    """Scans a group's layers, period by period; weights, caches and statistics are lists over the group's stacks."""

    def period(carry: Carry, inputs: tuple[list[Params], Array]) -> tuple[Carry, Any]:
        (hidden, stacks, taken), (weights, number) = carry, inputs
        outs: list[LayerOut] = []
        for place, (layer, layer_weights, stack) in enumerate(zip(layers, weights, stacks, strict=True)):
            taken = taken.at(group.first + number * group.period + place, hidden.x)
            outs.append(layer(hidden, layer_weights, stack, number))
            hidden = outs[-1][0]
        _, stats, stacks = map(list, zip(*outs, strict=True))
        return (hidden, stacks, taken), stats

    repeats = group.repeats // axis_size("layers")
    is_short = platform() == "cpu" and repeats * group.period <= CPU_UNROLLED_LAYERS
    return jax.lax.scan(period, carry, (weights, jnp.arange(repeats)), unroll=repeats if is_short else 1)


def _one_by_one(
    layers: list[Layer], group: LayerGroup, weights: list[Any], carry: Carry
) -> tuple[Carry, list[RouterStats | None]]:
    """`_scan` of stacks that are lists of layers, as engines have them (`layers_apart`).

    A layer is a function of its own, which is traced once and called by all of its kind; XLA inlines it."""
    hidden, stacks, taken = carry
    outs: list[list[LayerOut]] = [[] for _ in layers]
    functions = [jax.jit(layer, static_argnums=3) for layer in layers]
    for number in range(group.repeats):
        for place, layer in enumerate(functions):
            taken = taken.at(group.first + number * group.period + place, hidden.x)
            cached = None if stacks[place] is None else stacks[place][number]
            outs[place].append(layer(hidden, weights[place][number], cached, 0))
            hidden = outs[place][-1][0]
    stats = [jax.tree.map(lambda *x: jnp.stack(x), *(out[1] for out in of)) for of in outs]  # of None: None
    caches = [None if held is None else [out[2] for out in of] for held, of in zip(stacks, outs, strict=True)]
    return (hidden, caches, taken), stats


def _final_norm(config: ModelConfig, params: Params, hidden: Hidden) -> Array:
    others = ("blocks", MODULES, DRAFTER, ADAPTER, SCORE, REFERENCE)
    trunk = {name: array for name, array in params.items() if name not in others}
    return nnx.merge(trunk_definition(config)[0], nnx.State(trunk)).norm(*hidden)
