"""Attention of new tokens to the keys and values that pages hold (Kwon et al. 2023, "PagedAttention").

A page has the keys or values of `S` consecutive positions of one row, heads before positions, so that its products need
no transposed copy; a table says which pages a row has, in the order of its positions. A CPU reads page after page, as
flash attention does (Dao et al. 2022), and only those that a query may see: a row of 100 tokens in a context of 2,048
costs what 128 cost. TPUs run a kernel (`kernels/paged_flash.py`) if head dimensions fill their lanes. Otherwise a row's
pages are gathered and read at once.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.attention import (
    as_group_rows,
    attention,
    from_group_rows,
    group_product,
    seen_by_rows,
    sinks_of_rows,
)
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED, Mask

# Positions in a page. Eight rows of 500 tokens, 30 layers, 3 key heads of 64 dimensions on two AVX-512 cores: blocks of
# 64, 128 and 256 take 22, 15 and 13 ms of a decode step; one row of 100: 1.1, 1.9 and 2.0 ms.
PAGE = 128

type Sums = tuple[Array, Array, Array]  # of softmax so far: the largest score, the normaliser, the weighted values


@dataclass(frozen=True)
class Paged:
    """One layer's pages of a store, as rows of tokens see them; the first `dim` dimensions of each entry."""

    store: Float[Array, "L pages K S D"]
    layer: Int[Array, ""] | int
    table: Int[Array, "B per_row"]
    dim: int

    def page(self, number: Int[Array, ""]) -> Float[Array, "B K S dim"]:
        """Each row's page number `number`."""
        ids = jax.lax.dynamic_index_in_dim(self.table, number, 1, keepdims=False)
        if ids.size > 1:
            return self.store[self.layer, ids][..., : self.dim]
        sizes = (1, 1, *self.store.shape[2:4], self.dim)
        return jax.lax.dynamic_slice(self.store, (self.layer, ids[0], 0, 0, 0), sizes)[0]

    def rows(self) -> Float[Array, "B N*S K dim"]:
        """All pages of each row."""
        pages = self.store[self.layer, self.table][..., : self.dim].swapaxes(2, 3)
        return pages.reshape(pages.shape[0], -1, *pages.shape[3:])


def paged_attention(
    q: Float[Array, "B T H Dk"],
    keys: Paged,
    values: Paged,
    positions: Int[Array, "B T"],
    length: int,
    *,
    window: int | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """As `attention`, over the pages of each row, in which a query at position `p` sees positions up to `p`, those
    above `p - window`.

    A query at a position `>= length` is padding. A row's result does not depend on the others, to the last bit: a page
    that no query sees changes no sum.
    """
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if platform() == "tpu" and keys.dim % LANES == 0 and values.dim % LANES == 0:
        from lifecycle.kernels.paged_flash import paged_flash

        stores = keys.store, None if values.store is keys.store else values.store
        options = {"value_dim": values.dim, "scale": scale, "window": window, "soft_cap": soft_cap, "sinks": sinks}
        return paged_flash(q, stores, keys.layer, keys.table, positions, length, **options)
    if platform() != "cpu" or keys.table.shape[1] == 1:
        k, v = keys.rows().astype(q.dtype), values.rows().astype(q.dtype)
        mask = Mask(positions, jnp.broadcast_to(jnp.arange(k.shape[1]), (q.shape[0], k.shape[1])), window=window)
        return attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks)
    return _page_by_page(q * scale, keys, values, positions, length, window, soft_cap, sinks)


def _page_by_page(
    q: Array,
    keys: Paged,
    values: Paged,
    positions: Array,
    length: int,
    window: int | None,
    soft_cap: float | None,
    sinks: Array | None,
) -> Array:
    num_queries, (groups, size) = q.shape[1], keys.store.shape[2:4]
    rows = as_group_rows(q, groups).astype(jnp.float32)  # a CPU multiplies in float32 anyway

    def one_page(carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
        number, sums = carry
        here = jnp.broadcast_to(number * size + jnp.arange(size), (q.shape[0], size))
        seen = seen_by_rows(Mask(positions, here, window=window).dense(), q.shape[2] // groups)
        k, v = (stored.page(number).astype(q.dtype).astype(jnp.float32) for stored in (keys, values))
        return number + 1, _add(sums, rows, k, v, seen, soft_cap)

    begin, end = _pages_seen(positions, length, size, window)
    first = None if sinks is None else sinks_of_rows(sinks, groups, num_queries)
    start = begin, _start(rows, values.dim, first)
    _, (_, total, out) = jax.lax.while_loop(lambda carry: carry[0] < end, one_page, start)
    return from_group_rows((out * jnp.where(total > 0, 1 / total, 0.0)).astype(q.dtype), num_queries)


def _pages_seen(positions: Array, length: int, size: int, window: int | None) -> tuple[Array, Array]:
    """The first page that a query may see, and the one after the last."""
    is_token = positions < length
    end = -(-(jnp.where(is_token, positions, -1).max() + 1) // size)
    if window is None:
        return jnp.zeros_like(end), end
    oldest = jnp.where(is_token, positions, length).min() - window + 1
    return jnp.maximum(oldest, 0) // size, end


def _start(rows: Float[Array, "B K N Dk"], value_dim: int, sinks: Float[Array, "K N 1"] | None) -> Sums:
    """Before the first page; a sink is a key that every query sees and whose value is zero (gpt-oss)."""
    one = (*rows.shape[:3], 1)
    top = jnp.full(one, MASKED, jnp.float32) if sinks is None else jnp.broadcast_to(sinks, one)
    total = jnp.full(one, 0.0 if sinks is None else 1.0, jnp.float32)
    return top, total, jnp.zeros((*rows.shape[:3], value_dim), jnp.float32)


def _add(
    sums: Sums,
    rows: Float[Array, "B K N Dk"],
    keys: Float[Array, "B K S Dk"],
    values: Float[Array, "B K S Dv"],
    seen: Array,
    soft_cap: float | None,
) -> Sums:
    """The sums with one more page of keys."""
    top, total, out = sums
    scores = group_product(rows, keys, 3, 3)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(seen, scores, MASKED)
    new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
    shrunk = jnp.exp(top - new_top)
    weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
    total = total * shrunk + weights.sum(-1, keepdims=True)
    return new_top, total, out * shrunk + group_product(weights, values, 3, 2)
