"""The KV cache: pages of each stack of layers, updated in place.

Attention calls one method of a cache, `attend`, which stores new tokens and attends from their queries to all stored
ones; they come on one axis `N`, row after row, and `Rows` says where they belong. What is stored depends on the
cache: `KeyValues` has every head's keys and values, `Latents` the latents of latent attention, in the compute dtype or
in 8 bits (`kernels/page_store.py`). In both, a page holds `PAGE` consecutive positions of one row, and a table names
each row's pages in order (`kernels/paged.py`). Layers with a window have pages and tables of their own: a page that has
left the window may be given to another row.

A query at position `p` sees positions `<= p` only, so it never sees an earlier sequence's tokens: a page, whose values
are finite whatever was computed, is reused without being cleared. A token at a position `>= length` is padding and is
not stored.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged import paged_attention
from lifecycle.kernels.paged_rows import PAGE, Rows
from lifecycle.kernels.quantised import FORMATS
from lifecycle.model.config import CacheFormat, LayerKind, ModelConfig
from lifecycle.model.stacks import layer_groups

FEW_ON_CPUS = 9  # tokens of a row that attend one by one there; chunks of prompts have 16 and more
type PageKind = Literal["full", "window"]  # whether a layer may see all earlier positions
type Tables = dict[PageKind, Int[Array, "B per_row"]]  # each row's pages


def page_kind(kind: LayerKind) -> PageKind:
    """The pages that a layer of a kind uses."""
    return "window" if kind == "local" else "full"


def page_kinds(config: ModelConfig) -> list[PageKind]:
    """The kinds of pages that a model has."""
    return list(dict.fromkeys(page_kind(config.kind(number)) for number in range(config.num_layers)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of a stack of layers."""

    pages: PageStore

    def attend(
        self,
        layer: Int[Array, ""] | int,
        rows: Rows,
        q: Float[Array, "1 N H Dh"],
        k: Float[Array, "1 N K Dh"],
        v: Float[Array, "1 N K Dh"],
        **options: Any,
    ) -> "tuple[Float[Array, '1 N H Dh'], KeyValues]":
        """Stores `k` and `v`, and attends to all stored tokens of the rows."""
        flat = q.shape
        q, k, v = (x.reshape(*rows.positions.shape, *x.shape[2:]) for x in (q, k, v))
        pages = self.pages.written(layer, rows, jnp.concatenate([k, v], axis=3))
        return paged_attention(q, pages, layer, rows, **options).reshape(flat), KeyValues(pages)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Latents:
    """Latent attention's cache: each token's normed latent, followed by the rotary key that all heads share, and on
    TPUs by zeros up to whole lanes, which take no more memory there. In 8 bits both have a scale: a rotary key is not
    normed, and may be much larger."""

    pages: PageStore

    def attend(
        self,
        layer: Int[Array, ""] | int,
        rows: Rows,
        q: Float[Array, "1 N H Dc+Dr"],
        latents: Float[Array, "1 N Dc+Dr"],
        **options: Any,
    ) -> "tuple[Float[Array, '1 N H Dc'], Latents]":
        """Stores `latents`, and attends to all stored ones as one key head whose first `Dc` dimensions are the
        values."""
        width = self.pages.entry.width
        both = (x.reshape(*rows.positions.shape, *x.shape[2:]) for x in (q, latents))
        q, latents = (jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]) for x in both)
        pages = self.pages.written(layer, rows, latents[:, :, None])
        out = paged_attention(q, pages, layer, rows, **options)
        return out.reshape(1, -1, *out.shape[2:]), Latents(pages)


type Stack = KeyValues | Latents


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The pages of a model and its rows' tables: one `Stack` per stack of layers, or a list of one for each layer,
    under the same names (`model/stacks.py`). Every array has layers on its first axis and pages on its second."""

    stacks: dict[str, Stack | list[Stack]]
    tables: Tables
    length: int = field(metadata={"static": True})  # the most tokens of a row
    page: int = field(metadata={"static": True})  # positions of a page

    @property
    def is_apart(self) -> bool:
        """Whether each layer has arrays of its own."""
        return any(isinstance(stack, list) for stack in self.stacks.values())

    def rows(self, positions: Int[Array, "B T"], kind: LayerKind, window: int | None) -> Rows:
        """New tokens at these positions, for the layers of a kind; a position `>= length` is padding.

        On CPUs a few tokens of a row are rows of one token each: a product of several queries has other bits than one.
        """
        seen, table = window if kind == "local" else None, self.tables[page_kind(kind)]
        if platform() == "cpu" and positions.shape[1] <= FEW_ON_CPUS:
            positions, table = positions.reshape(-1, 1), jnp.repeat(table, positions.shape[1], axis=0)
        return Rows.of(positions, table, self.length, self.page, seen)

    def logical_axes(self) -> "KVCache":
        """A tree like the cache whose leaves are tuples of logical axis names."""
        tables: Any = dict.fromkeys(self.tables, ("batch", None))
        return replace(self, stacks={name: _axes(stack) for name, stack in self.stacks.items()}, tables=tables)


def _axes(stack: Stack | list[Stack]) -> Any:
    if isinstance(stack, list):
        return [_axes(layer) for layer in stack]
    heads = None if isinstance(stack, Latents) else "kv_heads"
    values, scale = ("layers", "batch", None, heads, None, None), ("layers", "batch", heads, None)
    return jax.tree.map(lambda array: values if array.ndim == len(values) else scale, stack)


class Attending(Protocol):
    """What attention gives new tokens to, and attends in: a layer's view of a KV cache, or a drafter's steps."""

    def attend(self, *new: Any, **options: Any) -> tuple[Array, Any]:
        """Attention's output, and this with the new tokens."""
        ...


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of its stack; `attend` returns the view of a stack that contains the new tokens."""

    stack: Stack
    layer: Int[Array, ""] | int
    rows: Rows

    def attend(self, *new: Any, **options: Any) -> "tuple[Float[Array, '1 N H Dv'], LayerCache]":
        """Calls the stack's `attend` for this layer."""
        out, stack = self.stack.attend(self.layer, self.rows, *new, **options)
        return out, replace(self, stack=stack)


def pages_of(length: int, page: int = PAGE) -> int:
    """How many pages `length` tokens take."""
    return -(-length // page)


def init_pages(
    config: ModelConfig,
    num_pages: dict[PageKind, int],
    length: int,
    dtype: jnp.dtype | str = "float32",
    is_apart: bool = False,
    page: int = PAGE,
    kv_cache: CacheFormat | None = None,
) -> KVCache:
    """Empty pages, so many of each kind, for rows of at most `length` tokens, without rows: `tables` come with them.
    `is_apart`: each layer has arrays of its own. `kv_cache`: 8 bits instead of the dtype."""
    dtype = dtype if kv_cache is None else FORMATS[kv_cache].values
    stacks: dict[str, Stack | list[Stack]] = {}
    for group in layer_groups(config):
        for number, name in enumerate(group.stacks, group.first):
            pages = num_pages[page_kind(config.kind(number))]
            if is_apart:
                stacks[name] = [_empty(config, (1, pages), page, dtype) for _ in range(group.repeats)]
            else:
                stacks[name] = _empty(config, (group.repeats, pages), page, dtype)
    return KVCache(stacks, {}, length, page)


def init_cache(
    config: ModelConfig,
    batch: int,
    length: int,
    dtype: jnp.dtype | str = "float32",
    is_apart: bool = False,
    page: int = PAGE,
    kv_cache: CacheFormat | None = None,
) -> KVCache:
    """An empty cache for `batch` rows of at most `length` tokens, each with pages for all of them."""
    kinds, per_row = page_kinds(config), pages_of(length, page)
    cache = init_pages(config, dict.fromkeys(kinds, batch * per_row), length, dtype, is_apart, page, kv_cache)
    table = jnp.arange(batch * per_row, dtype=jnp.int32).reshape(batch, per_row)
    return replace(cache, tables=dict.fromkeys(kinds, table))


def with_copies(config: ModelConfig, cache: KVCache, pages: Tables, copies: Tables) -> KVCache:
    """A cache with the contents of `pages` in the pages `copies` too, `[B, M]` both; there are none beyond a kind's
    last, so that these are not written."""
    stacks = dict(cache.stacks)
    for group in layer_groups(config):
        for number, name in enumerate(group.stacks, group.first):
            kind = page_kind(config.kind(number))
            copied = partial(_copied, pages[kind].ravel(), copies[kind].ravel())
            stacks[name] = jax.tree.map(copied, stacks[name])
    return replace(cache, stacks=stacks)


def _copied(pages: Int[Array, " N"], copies: Int[Array, " N"], array: Array) -> Array:
    return array.at[:, copies].set(array[:, pages], mode="drop")


def _empty(config: ModelConfig, rows: tuple[int, int], page: int, dtype: jnp.dtype | str) -> Stack:
    if config.mla is not None:
        latent, rotary = config.mla.kv_lora_rank, config.mla.rope_head_dim
        rotary += -(latent + rotary) % LANES if platform() == "tpu" else 0
        return Latents(PageStore.empty((*rows, 1, page), Entry.latent(latent, rotary), dtype))
    entry = Entry.key_value(config.head_dim, config.head_dim)
    return KeyValues(PageStore.empty((*rows, config.num_kv_heads, page), entry, dtype))
