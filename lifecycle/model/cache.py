"""The key-value cache: one pair of arrays for all layers, written in place.

Row `b`, position `s` holds what that row's token number `s` left. A query at position `p` sees positions `<= p` only,
so what an earlier sequence left behind it is never seen, and a slot is reused without being cleared. A write at a
position outside the cache is dropped: that is how padding is told.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values, `[L, B, S, K, Dh]` each."""

    k: Float[Array, "L B S K Dh"]
    v: Float[Array, "L B S K Dh"]

    @property
    def length(self) -> int:
        return self.k.shape[2]

    def layer(self, index: Array | int) -> "LayerCache":
        return LayerCache(self, index)


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of the whole cache; `write` gives the view of a cache that holds the new keys too."""

    whole: KVCache
    index: Array | int

    @property
    def k(self) -> Float[Array, "B S K Dh"]:
        return self.whole.k[self.index]

    @property
    def v(self) -> Float[Array, "B S K Dh"]:
        return self.whole.v[self.index]

    def write(self, k: Array, v: Array, positions: Int[Array, "B T"]) -> "LayerCache":
        rows = jnp.arange(k.shape[0])[:, None]
        place = (self.index, rows, positions)
        new_k = self.whole.k.at[place].set(k.astype(self.whole.k.dtype), mode="drop")
        new_v = self.whole.v.at[place].set(v.astype(self.whole.v.dtype), mode="drop")
        return LayerCache(KVCache(new_k, new_v), self.index)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype | str = "float32") -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens.

    Latent attention keeps one "head" of `kv_lora_rank + rope_head_dim` as keys; its values are a part of them.
    """
    rows, mla = (config.num_layers, batch, length), config.mla
    keys = (config.num_kv_heads, config.head_dim) if mla is None else (1, mla.kv_lora_rank + mla.rope_head_dim)
    values = keys if mla is None else (1, 0)
    return KVCache(jnp.zeros((*rows, *keys), dtype), jnp.zeros((*rows, *values), dtype))
