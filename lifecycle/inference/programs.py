"""The device programs of continuous batching, prefill and decode, with the weights and the cache that they work on.

Both programs take the whole cache, donated, and give it back. What must hold: few compiled shapes, none after the
warm-up. A prompt goes in by chunks padded to one of `BUCKETS`; the number of decode steps in a dispatch is an argument
and not a shape. A slot that is not decoding is padding: it reads the cache and writes nothing.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Bool, Int
from lifecycle.inference.sampling import MAX_TOP_LOGPROBS, Sampled, SamplingRows, sample
from lifecycle.inference.scheduler import MAX_STEPS
from lifecycle.model.cache import KVCache, init_cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, compute_dtype, forward_cached, logits

MAX_STOP_IDS = 8  # stop ids that end a row on the device; the host compares all of them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptRows:
    """Chunks of prompts, a row for each group of slots."""

    slot: Int[Array, " B"]  # within its group
    tokens: Int[Array, "B T"]
    start: Int[Array, " B"]  # position of the first token
    size: Int[Array, " B"]  # tokens that are not padding; 0: the group has no chunk
    sampling: SamplingRows
    want_top: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeRows:
    """What a decode dispatch must know of each slot."""

    token: Int[Array, " B"]  # the newest token, not yet in the cache
    position: Int[Array, " B"]  # of that token
    remaining: Int[Array, " B"]  # tokens still wanted; 0: the slot is not decoding
    stop_ids: Int[Array, "B 8"]  # -1: none
    sampling: SamplingRows
    want_top: Bool[Array, ""]


@partial(jax.jit, static_argnames=("config", "num_ids"), donate_argnames="cache")
def prefill(
    config: ModelConfig, num_ids: int, params: Params, cache: KVCache, rows: PromptRows
) -> tuple[Sampled, KVCache]:
    """Puts `tokens[:size]` at positions `start...` of a slot; samples the token after them, `[1]`."""
    index, start, size = jnp.arange(rows.tokens.shape[1]), rows.start[0], rows.size[0]
    positions = jnp.where(index < size, start + index, cache.length)[None]
    hidden, own = forward_cached(config, params, rows.tokens, positions, cache.take_row(rows.slot[0]))
    cache = cache.put_row(rows.slot[0], own)
    last = jax.lax.dynamic_slice_in_dim(hidden[0], jnp.maximum(size - 1, 0), 1)
    return sample(logits(config, params, last), rows.sampling, rows.start + rows.size, rows.want_top, num_ids), cache


@partial(jax.jit, static_argnames=("config", "num_ids"), donate_argnames="cache")
def decode(
    config: ModelConfig, num_ids: int, params: Params, cache: KVCache, rows: DecodeRows, num_steps: Int[Array, ""]
) -> tuple[Sampled, KVCache]:
    """Up to `num_steps` (at most `MAX_STEPS`) tokens for each decoding slot, `[B, MAX_STEPS]`; -1 where there is none.

    Ends early when no slot is decoding any more.
    """

    def go_on(carry: tuple[Array, DecodeRows, Sampled, KVCache]) -> Array:
        step, rows, _, _ = carry
        return (step < num_steps) & (rows.remaining > 0).any()

    def one_step(carry: tuple[Array, DecodeRows, Sampled, KVCache]) -> tuple[Array, DecodeRows, Sampled, KVCache]:
        step, rows, outputs, cache = carry
        is_active = rows.remaining > 0
        positions = jnp.where(is_active, rows.position, cache.length)
        hidden, cache = forward_cached(config, params, rows.token[:, None], positions[:, None], cache)
        new = sample(logits(config, params, hidden[:, 0]), rows.sampling, rows.position + 1, rows.want_top, num_ids)
        shown = Sampled(jnp.where(is_active, new.token, -1), new.logprob, new.top_ids, new.top_logprobs)
        outputs = jax.tree.map(lambda all_steps, value: all_steps.at[:, step].set(value), outputs, shown)
        return step + 1, _advance(rows, new.token, is_active), outputs, cache

    start = (jnp.zeros((), jnp.int32), rows, _no_outputs(rows.token.shape[0]), cache)
    _, _, outputs, cache = jax.lax.while_loop(go_on, one_step, start)
    return outputs, cache


def _advance(rows: DecodeRows, token: Array, is_active: Array) -> DecodeRows:
    is_stop = (token[:, None] == rows.stop_ids).any(-1)
    remaining = jnp.where(is_active & ~is_stop, rows.remaining - 1, 0)
    position = rows.position + is_active
    return DecodeRows(token, position, remaining, rows.stop_ids, rows.sampling, rows.want_top)


def _no_outputs(batch: int) -> Sampled:
    shape = (batch, MAX_STEPS)
    top = (*shape, MAX_TOP_LOGPROBS)
    return Sampled(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape), jnp.zeros(top, jnp.int32), jnp.zeros(top))


class Programs:
    """One model's weights and cache on its device; each call is one dispatch, and waits for its result."""

    num_devices, num_groups = 1, 1

    def __init__(self, config: ModelConfig, params: Params, num_slots: int, max_seq_len: int, num_ids: int) -> None:
        """`num_ids`: ids from there on, a vocabulary's padding, are never sampled."""
        self._config, self._num_ids = config, num_ids
        dtype = compute_dtype(config)
        self._params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)  # cast once, not in every step
        self._cache = init_cache(config, num_slots, max_seq_len, dtype)

    def prefill(self, rows: PromptRows) -> Sampled:
        """The token after each row's chunk, `[B, 1]` in host memory."""
        sampled, self._cache = prefill(self._config, self._num_ids, self._params, self._cache, rows)
        return jax.tree.map(lambda x: np.asarray(x)[:, None], sampled)

    def decode(self, rows: DecodeRows, num_steps: int) -> Sampled:
        """Up to `num_steps` tokens for each slot, `[B, MAX_STEPS]` in host memory; -1 where there is none."""
        steps = np.int32(num_steps)
        sampled, self._cache = decode(self._config, self._num_ids, self._params, self._cache, rows, steps)
        return jax.tree.map(np.asarray, sampled)
