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
from lifecycle.kernels.attention import attention
from lifecycle.kernels.mask import Mask
from lifecycle.model.config import ModelConfig
from lifecycle.model.stacks import layer_groups


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of a stack of layers."""

    keys: Float[Array, "L B S K Dh"]
    values: Float[Array, "L B S K Dh"]
    length: int = field(metadata={"static": True})  # the most tokens a row may have

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
        slots = _Slots(self.keys.shape[2], self.length, mask)
        keys, seen_k = slots.extend(self.keys, layer, k)
        values, seen_v = slots.extend(self.values, layer, v)
        out = attention(q, seen_k.astype(q.dtype), seen_v.astype(q.dtype), slots.mask(), **options)
        return out, replace(self, keys=keys, values=values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Latents:
    """Latent attention's cache: each token's normed latent, followed by the rotary key that all heads share."""

    latents: Float[Array, "L B S Dc+Dr"]
    length: int = field(metadata={"static": True})

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
        slots = _Slots(self.latents.shape[2], self.length, mask)
        stored, seen = slots.extend(self.latents, layer, latents)
        keys = seen[:, :, None].astype(q.dtype)
        out = attention(q, keys, keys[..., :rank], slots.mask(), **options)
        return out, replace(self, latents=stored)


type Stack = KeyValues | Latents


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The cache of a model: one `Stack` per stack of layers, under the same names (`model/stacks.py`). Every array has
    layers on its first axis and rows on its second."""

    stacks: dict[str, Stack]
    length: int = field(metadata={"static": True})

    def take_row(self, row: Int[Array, ""] | int) -> "KVCache":
        """The cache of one row."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=1), self)

    def put_row(self, row: Int[Array, ""] | int, own: "KVCache") -> "KVCache":
        """This cache with `own` as row `row`."""
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, axis=1), self, own)

    def logical_axes(self) -> "KVCache":
        """A tree like the cache whose leaves are tuples of logical axis names."""
        return replace(self, stacks={name: _axes(stack) for name, stack in self.stacks.items()})


def _axes(stack: Stack) -> Any:
    if isinstance(stack, Latents):
        return replace(stack, latents=("layers", "batch", None, None))
    heads = ("layers", "batch", None, "kv_heads", None)
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


def init_cache(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype | str = "float32") -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    stacks: dict[str, Stack] = {}
    for group in layer_groups(config):
        for number, name in enumerate(group.stacks, group.first):
            window = config.window if config.kind(number) == "local" else None
            slots = length if window is None else min(window, length)
            shape = (group.repeats, batch, slots)
            if config.mla is not None:
                width = config.mla.kv_lora_rank + config.mla.rope_head_dim
                stacks[name] = Latents(jnp.zeros((*shape, width), dtype), length)
            else:
                heads = (config.num_kv_heads, config.head_dim)
                keys, values = (jnp.zeros((*shape, *heads), dtype) for _ in range(2))
                stacks[name] = KeyValues(keys, values, length)
    return KVCache(stacks, length)


class _Slots:
    """The slots of new tokens, and the keys that their queries see.

    If every position has its own slot, or if a row gets one token, tokens are written first and queries see the slots.
    Otherwise a token may overwrite one that an earlier query of its chunk still sees: then queries see the old slots,
    followed by the new tokens.
    """

    def __init__(self, num_slots: int, length: int, new: Mask) -> None:
        """`new.query_positions` are the new tokens' positions: consecutive in a row, then padding."""
        self._num, self._length, self._new = num_slots, length, new
        self._is_ring = num_slots < length
        self._is_written_first = not self._is_ring or new.query_positions.shape[1] == 1

    def extend(
        self, store: Float[Array, "L B S *dims"], layer: Array | int, new: Float[Array, "B T *dims"]
    ) -> tuple[Array, Float[Array, "B N *dims"]]:
        """The store with the layer's new tokens written, and the layer's entries that queries see, in the key order of
        `mask`."""
        new = new.astype(store.dtype)
        rows = jnp.arange(new.shape[0])[:, None]
        written = store.at[layer, rows, self._targets()].set(new, mode="drop")
        seen = written[layer] if self._is_written_first else jnp.concatenate([store[layer], new], axis=1)
        return written, seen

    def mask(self) -> Mask:
        """The mask between the new queries and the keys of `extend`."""
        return replace(self._new, key_positions=self._key_positions())

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
