"""New tokens of rows whose keys and values lie in pages: where each belongs, and what its row sees.

All layers with the same pages would compute it alike, so it is computed once, before them: in the loop over layers a
TPU took 33 k cycles a layer for it, 7 % of all but the kernel itself in a decode step of 64 rows.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Int, Shaped

# Positions in a page. Eight rows of 500 tokens, 30 layers, 3 key heads of 64 dimensions on two AVX-512 cores: blocks of
# 64, 128 and 256 take 22, 15 and 13 ms of a decode step; one row of 100: 1.1, 1.9 and 2.0 ms.
PAGE = 128
# Positions of a block, by the queries of a row: of few so many that a step's fixed work is hidden (of a v5e, one key
# head, 16 rows, 429 and 646 instruction bundles for 512 and 1,024 positions, which take 480 and 960 cycles to copy); of
# a chunk such that a head's scores are 2 MB (256 tokens, 4 query heads a key head).
BLOCK, LONG_BLOCK, FEW = 512, 1024, 4
NOWHERE = 2**30  # above any page


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps:
    """The grid of the TPU kernel (`kernels/paged_flash.py`): for each step the row, the block of its pages, and whether
    that is the row's first and last."""

    row: Int[Array, " steps"]
    block: Int[Array, " steps"]
    is_first: Int[Array, " steps"]
    is_last: Int[Array, " steps"]
    count: Int[Array, ""]  # of the steps that there are
    num_pages: int = field(metadata={"static": True})  # of a block


def steps_of(num_queries: int, seen: Int[Array, " B"], last: Int[Array, " B"], per_row: int, page: int) -> Steps:
    """The steps for rows that see positions from `seen` to `last`, in `per_row` pages of `page` positions each."""
    num_pages = min(max((LONG_BLOCK if num_queries <= FEW else BLOCK) // page, 1), per_row)
    span, most = num_pages * page, -(-per_row // num_pages)
    blocks = blocks_of(jnp.where(last < 0, 0, seen // span), jnp.maximum(last, 0) // span, most)
    return Steps(**blocks, num_pages=num_pages)


def blocks_of(first: Int[Array, " B"], last: Int[Array, " B"], most: int) -> dict[str, Array]:
    """The steps for each row's blocks `first` to `last`, at most `most` of a row, and how many they are."""
    counts = last - first + 1
    rows, steps = jnp.arange(first.size), jnp.arange(first.size * most)[:, None]
    ends = (counts * (rows <= rows[:, None])).sum(1)  # one pass over [steps, rows], where XLA's sums would be many
    begins = ends - counts
    own = (begins <= steps) & (steps < ends)
    row, begin, end, block = (jnp.where(own, x, 0).sum(1) for x in (rows, begins, ends, first - begins + steps))
    step = steps[:, 0]
    found = {"row": row, "block": block, "is_first": step == begin, "is_last": step == end - 1, "count": ends[-1]}
    return {name: array.astype(jnp.int32) for name, array in found.items()}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """New tokens of rows and the rows' pages: what all layers with the same pages would compute alike.

    A token at a position `>= length` is padding and comes after the row's others, which are at consecutive positions.
    """

    positions: Int[Array, "B T"]
    table: Int[Array, "B per_row"]
    pages: Int[Array, "B T"]  # in which each token belongs; padding in none
    start: Int[Array, " B"]  # the position of each row's first query
    last: Int[Array, " B"]  # that of its last token; -1: there is none
    steps: Steps | None  # of the TPU kernel
    begin: Int[Array, ""]  # the first page that a query sees
    end: Int[Array, ""]  # the page after the last one
    size: int = field(metadata={"static": True})  # positions in a page
    window: int | None = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        positions: Int[Array, "B T"],
        table: Int[Array, "B per_row"],
        length: int,
        size: int,
        window: int | None = None,
    ) -> "Rows":
        """Tokens at these positions of rows of at most `length` tokens, in pages of `size`. A query at position `p`
        sees positions up to `p`, those above `p - window`."""
        is_token = positions < length
        numbers = jnp.minimum(positions // size, table.shape[1] - 1)
        pages = jnp.where(is_token, jnp.take_along_axis(table, numbers, axis=1), NOWHERE)
        last = jnp.where(is_token, positions, -1).max(axis=1)
        first = jnp.where(is_token, positions, length).min(axis=1)
        seen = jnp.zeros_like(first) if window is None else jnp.maximum(first - window + 1, 0)
        steps = None
        if platform() == "tpu":
            steps = steps_of(positions.shape[1], seen, last, table.shape[1], size)
        begin, end = seen.min() // size, -(-(last.max() + 1) // size)
        return cls(positions, table, pages, positions[:, 0], last, steps, begin, end, size, window)

    def written(
        self, store: Shaped[Array, "*dims"], layer: Int[Array, ""] | int, new: Shaped[Array, "B T *entry"]
    ) -> Shaped[Array, "*dims"]:
        """A store of values `[L, pages, slices, K, S, Ds]`, or of scales `[L, pages, scales, S]`, with a layer's new
        tokens, `[B, T, slices, K, Ds]` or `[B, T, scales]`, in their pages."""
        new, places = new.astype(store.dtype), self.positions % self.size
        if self.positions.shape == (1, 1):
            return self._written_one(store, layer, new)
        if store.ndim == 4:
            return store.at[layer, self.pages, :, places].set(new, mode="drop")
        # Each slice of each head by itself: of several at once a TPU's scatter wants another layout, for which XLA
        # copied the whole cache in each layer (1.6 s of a step of 64 rows, 8 bits, 8B).
        slices, heads = jnp.arange(store.shape[2])[:, None], jnp.arange(store.shape[3])
        pages, places = (x[:, :, None, None] for x in (self.pages, places))
        return store.at[layer, pages, slices, heads, places].set(new, mode="drop")

    def _written_one(self, store: Array, layer: Array | int, new: Array) -> Array:
        """XLA writes a single place by an update, which on CPUs it undoes for an index that may be dropped, and fuses
        twice, once for the carry and once for the reader: each took a copy of the cache, 20 of 43 ms of a step."""
        page, place, inner = self.pages[0, 0], self.positions[0, 0] % self.size, store.ndim // 2 - 1
        shape = (1, 1, *store.shape[2 : 2 + inner], 1, *store.shape[3 + inner :])
        there = (layer, jnp.minimum(page, store.shape[1] - 1), *[0] * inner, place, *[0] * (store.ndim - 3 - inner))
        # fused with what makes the token, the update took a copy too: 34 CPU-milliseconds a step of 135 M, not 23
        new = jax.lax.optimization_barrier(new).reshape(shape)
        token = jnp.where(page < NOWHERE, new, jax.lax.dynamic_slice(store, there, shape))
        return jax.lax.optimization_barrier(jax.lax.dynamic_update_slice(store, token, there))
