"""Forward passes of what predicts further tokens: prediction modules (`model/mtp.py`), a drafter (`model/drafter.py`).

Both go on from what the decoder computed with the embeddings of the tokens after it, and share embedding and head with
it. In training they see whole rows (`model/mtp.py:ahead`), in inference they have KV caches of their own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.typing import Array, Batch, Float, Int
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.rotary import rotary_angles
from lifecycle.model.cache import KVCache, LayerCache
from lifecycle.model.config import LayerKind, ModelConfig, Precision, Remat
from lifecycle.model.cut_hidden import cuts_hidden, to_columns, to_rows
from lifecycle.model.decoder import angles_of, causal_mask
from lifecycle.model.drafter import VOCABULARY, Drafter, Unrolled, block_config
from lifecycle.model.embedding import embed, head, logits_of
from lifecycle.model.gathering import gathered
from lifecycle.model.layers import Angles
from lifecycle.model.params import Params, drafter_definition, module_definition
from lifecycle.model.pipeline import own_rows
from lifecycle.model.remat import rematerialised
from lifecycle.model.routing import RouterStats
from lifecycle.model.stacks import DRAFTER, MODULES, MODULES_STACK
from lifecycle.parallel.collectives import hidden_cut, replicated

type Stats = dict[str, RouterStats]  # router statistics by stack, as `forward_train` returns them


def forward_modules(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "b t D"],
    rows: Sequence[Batch],
    remat: Remat | None = None,
    precision: Precision | None = None,
) -> tuple[list[Float[Array, "b t D"]], Stats]:
    """Each prediction module's hidden states after its norm, for `logits` or a loss, and their routers' statistics.

    `hidden` is what `forward_train` returned, and `rows` the batch as each module has it (`model/mtp.py:ahead`), in
    order; on a mesh of this device's rows and positions. `remat` and `precision` as there.
    """
    definition, declared = module_definition(config)
    kind = config.kind(config.num_layers - 1)

    def run(x: Array, embedded: Array, weights: Params, angles: Angles | None, mask: Mask) -> tuple[Any, ...]:
        used = gathered(config, declared, weights, precision)
        return nnx.merge(definition, nnx.State(used))(x, embedded, angles, mask)

    module, states, stats = run if remat is None else rematerialised(run, remat), [], []
    for number, row in enumerate(rows):
        tokens, positions, segments = (own_rows(row[name]) for name in ("tokens", "positions", "segment_ids"))
        mask = replace(causal_mask(tokens.shape, segments), window=config.window if kind == "local" else None)
        weights = jax.tree.map(lambda stack, number=number: stack[number], params[MODULES][MODULES_STACK])
        embedded = embed(config, params["embed"], tokens)
        hidden, normed, of_router, _ = module(hidden, embedded, weights, angles_of(config, positions)[kind], mask)
        states.append(normed)
        stats.append(of_router)
    return states, {MODULES: jax.tree.map(lambda *layers: jnp.stack(layers), *stats)} if stats[0] is not None else {}


def module_step(
    config: ModelConfig,
    module: Params,
    target: Params,
    state: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KVCache,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """One step of a prediction module in inference: its hidden states after its norm, and the cache with the new
    tokens.

    `module` has its arrays, not stacked, and `target` the decoder's. Place by place, `state` is what the decoder
    computed at a position, after the final norm, or this function's own result there; `tokens` the token after it, and
    `positions` the position of `state`. The result is of that position too; its logits (`embedding.logits`) are of the
    token after the next. `cache` is one of `cached_layer(config)`, with as many rows as the decoder's.
    """
    definition, declared = module_definition(config)
    kind = config.kind(config.num_layers - 1)
    mask = Mask(positions, positions, window=config.window if kind == "local" else None)
    with replicated("norm_seq"), hidden_cut(cuts_hidden(module, tokens.size, config.d_model)):
        flat = positions.reshape(1, -1)
        embedded = embed(config, target["embed"], tokens.reshape(1, -1))
        run = nnx.merge(definition, nnx.State(gathered(config, declared, module)))
        given = to_columns(state.reshape(1, *flat.shape[1:], -1)), embedded, angles_of(config, flat)[kind], mask
        _, normed, _, view = run(*given, _only_layer(cache, positions, kind, config.window))
        normed = to_rows(normed)
    return normed.reshape(state.shape), _with_layer(cache, view)


def forward_drafts(
    config: ModelConfig,
    params: Params,
    taken: Float[Array, "B t columns"],
    rows: Sequence[Batch],
    segment_ids: Int[Array, "B T"],
    remat: Remat | None = None,
    precision: Precision | None = None,
) -> list[Float[Array, "B t D"]]:
    """A drafter's hidden states after its norm, for `draft_head`, in each of as many unrolled steps as there are `rows`
    (`model/mtp.py:ahead`, in order).

    `taken` are the inputs of the target's layers (`forward_taking`) and `segment_ids` the batch's own. `remat` and
    `precision` as in `forward_train`.
    """
    drafter = _drafter(config, params, precision)
    block = drafter if remat is None else rematerialised(drafter.__call__, remat)
    feature, cache, states = drafter.feature(taken), Unrolled(causal_mask(segment_ids.shape, segment_ids)), []
    for number, row in enumerate(rows):
        angles = _angles(config, row["positions"] + number)
        feature, cache = block(feature, embed(config, params["embed"], row["tokens"]), angles, cache.mask, cache)
        states.append(drafter.norm(feature))
    return states


def draft_feature(
    config: ModelConfig, drafter: Params, taken: Float[Array, "*rows columns"]
) -> Float[Array, "*rows D"]:
    """The features of tokens that the target has computed, from the inputs of its layers (`forward_cached_taking` with
    `config.drafter_layers`)."""
    with replicated("norm_seq"):
        module, flat = _drafter(config, {DRAFTER: drafter}), taken.reshape(1, -1, taken.shape[-1])
        return module.feature(flat).reshape(*taken.shape[:-1], -1)


def draft_step(
    config: ModelConfig,
    drafter: Params,
    target: Params,
    feature: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KVCache,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """One step of a drafter in inference: the next features, and the cache with the new tokens.

    Place by place, `feature` is that of a position (`draft_feature` for what the target has computed, this function's
    own result for what was drafted), `tokens` the token after it, and `positions` the position of the feature. The
    result is the feature of that token's position; its logits (`draft_logits`) are of the token after that. `cache` is
    one of `block_config(config)`, with as many rows as the target's; positions as in `forward_cached`. A place that is
    written again is overwritten: after the target has checked a draft, the kept tokens come again with their true
    features.
    """
    with replicated("norm_seq"):
        flat = positions.reshape(1, -1)
        embedded = embed(config, target["embed"], tokens.reshape(1, -1))
        module = _drafter(config, {DRAFTER: drafter})
        given = feature.reshape(1, -1, config.d_model), embedded, _angles(config, flat), Mask(positions, positions)
        out, view = module(*given, _only_layer(cache, positions, "global", None))
    return out.reshape(feature.shape), _with_layer(cache, view)


def draft_logits(
    config: ModelConfig, drafter: Params, target: Params, feature: Float[Array, "*rows D"]
) -> Float[Array, "*rows V"]:
    """The logits of the tokens that can be drafted, in float32; `draft_ids` has their ids."""
    with replicated("norm_seq"):
        normed = _drafter(config, {DRAFTER: drafter}).norm(feature)
    return logits_of(config, draft_head(config, {**target, DRAFTER: drafter}), normed)


def draft_head(config: ModelConfig, params: Params) -> Any:
    """The rows of the output projection that a drafter uses: the target's own, or those of its smaller vocabulary."""
    own = params[DRAFTER].get(VOCABULARY)
    return head(config, params) if own is None else own["head"]


def draft_ids(config: ModelConfig, drafter: Params) -> Int[Array, " V"]:
    """The target's id of each token that can be drafted, in the order of `draft_logits`."""
    if VOCABULARY not in drafter:
        return jnp.arange(config.vocab_size)
    return drafter[VOCABULARY]["ids"].astype(jnp.int32)


def _only_layer(cache: KVCache, positions: Int[Array, "B T"], kind: LayerKind, window: int | None) -> LayerCache:
    """The layer of a cache that has one, for new tokens at these positions."""
    (held,) = cache.stacks.values()
    return LayerCache(held[0] if isinstance(held, list) else held, 0, cache.rows(positions, kind, window))


def _with_layer(cache: KVCache, layer: LayerCache | None) -> KVCache:
    assert layer is not None, "a block returns the cache that it is given"
    ((name, held),) = cache.stacks.items()
    return replace(cache, stacks={name: [layer.stack] if isinstance(held, list) else layer.stack})


def _drafter(config: ModelConfig, params: Params, precision: Precision | None = None) -> Drafter:
    definition, declared = drafter_definition(config)
    trained = {name: array for name, array in params[DRAFTER].items() if name != VOCABULARY}
    return nnx.merge(definition, nnx.State(gathered(block_config(config), declared, trained, precision)))


def _angles(config: ModelConfig, positions: Int[Array, "B T"]) -> Angles:
    block = block_config(config)
    return rotary_angles(positions, block.rope_dim, block.rope_theta, block.rope_scaling)
