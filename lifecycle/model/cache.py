"""The KV cache: the arrays of each stack of layers, updated in place.

Attention calls one method of a cache, `attend`, which stores new tokens and attends from their queries to all stored
ones. What is stored depends on the cache: `KeyValues` has every head's keys and values, `Latents` the latents of latent
attention. In both, the token at position `p` goes to slot `p % num_slots`. A global layer has a slot for each position;
a layer with a window has `window` slots, and a slot is overwritten when its token has left the window.

A query at position `p` sees positions `<= p` only, so it never sees an earlier sequence's tokens: a row is reused
without being cleared. A token at a position `>= length` is padding and is not stored.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.cached import cached_attention
from lifecycle.kernels.mask import Mask
from lifecycle.model.config import ModelConfig
from lifecycle.model.stacks import layer_groups


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of a stack of layers."""

    keys: Float[Array, "L B K S Dh"]
    values: Float[Array, "L B K S Dh"]
    length: int = field(metadata={"static": True})  # the most tokens a row may have
    first: Int[Array, ""] | None = None  # the row that the first row of new tokens continues; None: row 0

    def attend(
        self,
        layer: Int[Array, ""] | int,
        q: Float[Array, "B T H Dh"],
        k: Float[Array, "B T K Dh"],
        v: Float[Array, "B T K Dh"],
        mask: Mask,
        **options: Any,
    ) -> "tuple[Float[Array, 'B T H Dh'], KeyValues]":
        """Stores `k` and `v`, and attends to all stored tokens of the rows."""
        slots = _Slots(self.keys.shape[3], self.length, mask, self.first)
        keys, seen_k = slots.extend(self.keys, layer, k)
        values, seen_v = slots.extend(self.values, layer, v)
        out = cached_attention(q, seen_k, seen_v, slots.mask(), slots.num_used(), slots.first_seen, **options)
        return out, replace(self, keys=keys, values=values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Latents:
    """Latent attention's cache: each token's normed latent, followed by the rotary key that all heads share."""

    latents: Float[Array, "L B 1 S Dc+Dr"]
    length: int = field(metadata={"static": True})
    first: Int[Array, ""] | None = None

    def attend(
        self,
        layer: Int[Array, ""] | int,
        q: Float[Array, "B T H Dc+Dr"],
        latents: Float[Array, "B T Dc+Dr"],
        mask: Mask,
        rank: int,
        **options: Any,
    ) -> "tuple[Float[Array, 'B T H Dc'], Latents]":
        """Stores `latents`, and attends to all stored ones as one key head whose first `rank` dimensions are the
        values."""
        slots = _Slots(self.latents.shape[3], self.length, mask, self.first)
        stored, seen = slots.extend(self.latents, layer, latents[:, :, None])
        out = cached_attention(q, seen, seen[..., :rank], slots.mask(), slots.num_used(), slots.first_seen, **options)
        return out, replace(self, latents=stored)


type Stack = KeyValues | Latents


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The cache of a model: one `Stack` per stack of layers, or a list of one for each layer, under the same names
    (`model/stacks.py`). Every array has layers on its first axis and rows on its second."""

    stacks: dict[str, Stack | list[Stack]]
    length: int = field(metadata={"static": True})

    @property
    def is_apart(self) -> bool:
        """Whether each layer has arrays of its own."""
        return any(isinstance(stack, list) for stack in self.stacks.values())

    def at_row(self, row: Int[Array, ""] | None) -> "KVCache":
        """The same cache, whose row `row` the first row of new tokens continues; None: row 0, as in a new cache."""

        def of(stack: Stack | list[Stack]) -> Any:
            return [of(layer) for layer in stack] if isinstance(stack, list) else replace(stack, first=row)

        stacks: dict[str, Any] = {name: of(stack) for name, stack in self.stacks.items()}
        return replace(self, stacks=stacks)

    def logical_axes(self) -> "KVCache":
        """A tree like the cache whose leaves are tuples of logical axis names."""
        return replace(self, stacks={name: _axes(stack) for name, stack in self.stacks.items()})


def _axes(stack: Stack | list[Stack]) -> Any:
    if isinstance(stack, list):
        return [_axes(layer) for layer in stack]
    if isinstance(stack, Latents):
        return replace(stack, latents=("layers", "batch", None, None, None))
    heads = ("layers", "batch", "kv_heads", None, None)
    return replace(stack, keys=heads, values=heads)


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of its stack; `attend` returns the view of a stack that contains the new tokens."""

    stack: Stack
    layer: Int[Array, ""] | int

    def attend(self, *new: Any, **options: Any) -> "tuple[Float[Array, 'B T H Dv'], LayerCache]":
        """Calls the stack's `attend` for this layer."""
        out, stack = self.stack.attend(self.layer, *new, **options)
        return out, replace(self, stack=stack)


def init_cache(
    config: ModelConfig, batch: int, length: int, dtype: jnp.dtype | str = "float32", is_apart: bool = False
) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens. `is_apart`: each layer has arrays of its own."""
    stacks: dict[str, Stack | list[Stack]] = {}
    for group in layer_groups(config):
        for number, name in enumerate(group.stacks, group.first):
            window = config.window if config.kind(number) == "local" else None
            slots = length if window is None else min(window, length)
            if is_apart:
                stacks[name] = [_empty(config, (1, batch), slots, length, dtype) for _ in range(group.repeats)]
            else:
                stacks[name] = _empty(config, (group.repeats, batch), slots, length, dtype)
    return KVCache(stacks, length)


def _empty(config: ModelConfig, rows: tuple[int, int], slots: int, length: int, dtype: jnp.dtype | str) -> Stack:
    if config.mla is not None:
        width = config.mla.kv_lora_rank + config.mla.rope_head_dim
        return Latents(jnp.zeros((*rows, 1, slots, width), dtype), length)
    keys, values = (jnp.zeros((*rows, config.num_kv_heads, slots, config.head_dim), dtype) for _ in range(2))
    return KeyValues(keys, values, length)


class _Slots:
    """The slots of new tokens, and the keys that their queries see.

    If every position has its own slot, or if a row gets one token, tokens are written first and queries see the slots.
    Otherwise a token may overwrite one that an earlier query of its chunk still sees: then queries see the old slots,
    followed by the new tokens.
    """

    def __init__(self, num_slots: int, length: int, new: Mask, first: Array | None) -> None:
        """`new.query_positions` are the new tokens' positions: consecutive in a row, then padding; `first`: the row of
        the cache that their first row continues."""
        self._num, self._length, self._new = num_slots, length, new
        self._first = 0 if first is None else first
        self._is_ring = num_slots < length
        self._is_written_first = not self._is_ring or new.query_positions.shape[1] == 1

    def extend(
        self, store: Float[Array, "L N K S D"], layer: Array | int, new: Float[Array, "B T K D"]
    ) -> tuple[Array, Float[Array, "rows K keys D"]]:
        """The store with the layer's new tokens written, and the layer's entries, of which queries see those from row
        `first_seen` on, in the key order of `mask`."""
        new = new.astype(store.dtype)
        written = self._written(store, layer, new)
        if self._is_written_first:
            return written, written[layer]
        own = jax.lax.dynamic_slice_in_dim(store[layer], self._first, new.shape[0], axis=0)
        return written, jnp.concatenate([own, new.swapaxes(1, 2)], axis=2)

    @property
    def first_seen(self) -> Int[Array, ""] | int:
        """The row of the entries of `extend` that the first query sees."""
        return self._first if self._is_written_first else 0

    def mask(self) -> Mask:
        """The mask between the new queries and the keys of `extend`."""
        return replace(self._new, key_positions=self._key_positions())

    def _written(self, store: Array, layer: Array | int, new: Float[Array, "B T K D"]) -> Array:
        rows, targets = self._first + jnp.arange(new.shape[0])[:, None], self._targets()
        if new.shape[:2] != (1, 1):
            return store.at[layer, rows, :, targets].set(new, mode="drop")
        # XLA writes a single place by an update, which on CPUs it undoes for an index that may be dropped, and fuses
        # twice, once for the carry and once for the reader: each took a copy of the cache, 20 of 43 ms of a step.
        there = (layer, self._first, 0, jnp.minimum(targets[0, 0], self._num - 1), 0)
        token = new.reshape(1, 1, -1, 1, new.shape[3])
        token = jnp.where(targets[0, 0] < self._num, token, jax.lax.dynamic_slice(store, there, token.shape))
        written = jax.lax.dynamic_update_slice(store, token, there)
        return jax.lax.optimization_barrier(written)

    def num_used(self) -> Int[Array, ""]:
        """How many of the keys of `extend`, from the first on, may hold a token of some row."""
        if not self._is_written_first:
            return jnp.asarray(self._num + self._new.query_positions.shape[1])
        return jnp.minimum(self._last().max() + 1, self._num)

    def _targets(self) -> Int[Array, "B T"]:
        """The slots of the new tokens; a slot outside the store is not written. If a chunk is longer than the ring,
        only its last tokens are stored."""
        positions = self._new.query_positions
        if not self._is_ring:
            return positions
        is_kept = (positions < self._length) & (positions > self._last()[:, None] - self._num)
        return jnp.where(is_kept, positions % self._num, self._num)

    def _last(self) -> Int[Array, " B"]:
        """The position of each row's last new token."""
        positions = self._new.query_positions
        return jnp.where(positions < self._length, positions, -1).max(axis=1)

    def _key_positions(self) -> Int[Array, "B N"]:
        positions = self._new.query_positions
        slots = jnp.arange(self._num)
        if not self._is_ring:
            return jnp.broadcast_to(slots, (positions.shape[0], self._num))
        newest = self._last() if self._is_written_first else positions[:, 0] - 1
        held = newest[:, None] - (newest[:, None] - slots) % self._num  # the newest position of that slot
        held = jnp.where(held >= 0, held, self._length)  # not written yet: above every query's position
        return held if self._is_written_first else jnp.concatenate([held, positions], axis=1)
