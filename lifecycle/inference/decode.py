"""The two device programs of the engine: prefill of one slot, and decode steps over all slots.

Both take the whole cache, donated, and give it back. What must hold: few compiled shapes, none after the warm-up. A
prompt goes in by chunks padded to one of `BUCKETS`; the number of decode steps in a dispatch is an argument and not a
shape. A slot that is not decoding is padding: it reads what is there and writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Int
from lifecycle.inference.sampling import MAX_TOP_LOGPROBS, Sampled, SamplingRows, sample
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, forward_cached, logits

BUCKETS = (16, 64, 256)  # a chunk's padded length: at most 4 times the tokens for a short prompt, three compilations
# Decode steps in one dispatch, at most. 199 tokens of a 1.3 M-parameter model, context 512, CPU-seconds with 1 and with
# 16 steps a dispatch: one slot 0.15 and 0.05, eight slots 0.36 and 0.28.
MAX_STEPS = 16
MAX_STOP_IDS = 8  # stop ids that end a row on the device; the engine looks at all of them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """What a dispatch must know of each slot."""

    token: Int[Array, " B"]  # the newest token, not yet in the cache
    position: Int[Array, " B"]  # of that token
    remaining: Int[Array, " B"]  # tokens still wanted; 0: the slot is not decoding
    stop_ids: Int[Array, "B 8"]  # -1: none
    sampling: SamplingRows
    want_top: Bool[Array, ""]


def chunks(length: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a prompt: (start, tokens, padded length) of each chunk. It depends on the length only."""
    for start in range(0, length, BUCKETS[-1]):
        size = min(BUCKETS[-1], length - start)
        yield start, size, next(bucket for bucket in BUCKETS if bucket >= size)


@partial(jax.jit, static_argnames=("config", "num_ids"), donate_argnames="cache")
def prefill(
    config: ModelConfig,
    num_ids: int,
    params: Params,
    cache: KVCache,
    slot: Int[Array, ""],
    tokens: Int[Array, " T"],
    start: Int[Array, ""],
    size: Int[Array, ""],
    sampling: SamplingRows,
    want_top: Bool[Array, ""],
) -> tuple[Sampled, KVCache]:
    """Puts `tokens[:size]` at positions `start...` of one slot; samples the token after them (one row of settings)."""
    index = jnp.arange(tokens.shape[0])
    positions = jnp.where(index < size, start + index, cache.length)[None]
    own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot, 1, axis=1), cache)
    hidden, own = forward_cached(config, params, tokens[None], positions, own)
    cache = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, slot, axis=1), cache, own)
    last = jax.lax.dynamic_slice_in_dim(hidden[0], jnp.maximum(size - 1, 0), 1)
    return sample(logits(config, params, last), sampling, (start + size)[None], want_top, num_ids), cache


@partial(jax.jit, static_argnames=("config", "num_ids"), donate_argnames="cache")
def decode(
    config: ModelConfig, num_ids: int, params: Params, cache: KVCache, rows: Rows, num_steps: Int[Array, ""]
) -> tuple[Sampled, KVCache]:
    """Up to `num_steps` (at most `MAX_STEPS`) tokens for each decoding slot, `[B, MAX_STEPS]`; -1 where there is none.

    Ends early when no slot is decoding any more.
    """

    def go_on(carry: tuple[Array, Rows, Sampled, KVCache]) -> Array:
        step, rows, _, _ = carry
        return (step < num_steps) & (rows.remaining > 0).any()

    def one_step(carry: tuple[Array, Rows, Sampled, KVCache]) -> tuple[Array, Rows, Sampled, KVCache]:
        step, rows, outputs, cache = carry
        is_active = rows.remaining > 0
        place = jnp.where(is_active, rows.position, cache.length)
        hidden, cache = forward_cached(config, params, rows.token[:, None], place[:, None], cache)
        found = logits(config, params, hidden[:, 0])
        new = sample(found, rows.sampling, rows.position + 1, rows.want_top, num_ids)
        shown = Sampled(jnp.where(is_active, new.token, -1), new.logprob, new.top_ids, new.top_logprobs)
        outputs = jax.tree.map(lambda whole, part: whole.at[:, step].set(part), outputs, shown)
        return step + 1, _advance(rows, new.token, is_active), outputs, cache

    start = (jnp.zeros((), jnp.int32), rows, _no_outputs(rows.token.shape[0]), cache)
    _, _, outputs, cache = jax.lax.while_loop(go_on, one_step, start)
    return outputs, cache


def _advance(rows: Rows, token: Array, is_active: Array) -> Rows:
    is_stop = (token[:, None] == rows.stop_ids).any(-1)
    remaining = jnp.where(is_active & ~is_stop, rows.remaining - 1, 0)
    position = rows.position + is_active
    return Rows(token, position, remaining, rows.stop_ids, rows.sampling, rows.want_top)


def _no_outputs(batch: int) -> Sampled:
    shape = (batch, MAX_STEPS)
    none = jnp.full(shape, -1, jnp.int32)
    top = (*shape, MAX_TOP_LOGPROBS)
    return Sampled(none, jnp.zeros(shape), jnp.zeros(top, jnp.int32), jnp.zeros(top))
