"""Attention of new tokens to the keys and values that a cache holds.

A CPU reads the cache in blocks, as flash attention does (Dao et al. 2022), and only those that hold a token: one row of
100 tokens in a cache for 2,048 costs what 128 cost. The arrays have heads before positions, so that a block's products
need no transposed copy. Other devices read all positions at once.
"""

from collections.abc import Callable

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
from lifecycle.kernels.mask import MASKED, Mask

# Positions in a block. Eight rows of 500 tokens, 30 layers, 3 key heads of 64 dimensions on two AVX-512 cores: blocks
# of 64, 128 and 256 take 22, 15 and 13 ms of a decode step; one row of 100: 1.1, 1.9 and 2.0 ms.
BLOCK = 128

type Sums = tuple[Array, Array, Array]  # of softmax so far: the largest score, the normaliser, the weighted values


def cached_attention(
    q: Float[Array, "B T H Dk"],
    keys: Float[Array, "N K S Dk"],
    values: Float[Array, "N K S Dv"],
    mask: Mask,
    num_used: Int[Array, ""],
    first: Int[Array, ""] | int = 0,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """As `attention`, over a cache's rows from `first` on, whose first `num_used` positions may hold tokens.

    A row's result does not depend on `num_used`, to the last bit: a block that no query sees changes no sum.
    """

    def positions(x: Array, start: Array | int, size: int) -> Array:
        """Of the queries' rows, in their dtype; only these are read."""
        sizes = (q.shape[0], x.shape[1], size, x.shape[3])
        return jax.lax.dynamic_slice(x, (first, 0, start, 0), sizes).astype(q.dtype)

    size = keys.shape[2]
    if platform() != "cpu" or size <= BLOCK:
        k, v = (positions(x, 0, size).swapaxes(1, 2) for x in (keys, values))
        return attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks)
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale

    def read(start: Array) -> tuple[Array, Array]:
        return positions(keys, start, BLOCK), positions(values, start, BLOCK)

    sizes = keys.shape[1], size, values.shape[3]
    return _in_blocks(q * scale, read, sizes, mask, num_used, soft_cap, sinks)


def _in_blocks(
    q: Array,
    read: Callable[[Array], tuple[Array, Array]],
    sizes: tuple[int, int, int],
    mask: Mask,
    num_used: Array,
    soft_cap: float | None,
    sinks: Array | None,
) -> Array:
    """`read` gives the keys and values of the block that begins at a position; `sizes`: K, S and Dv."""
    length, (groups, size, value_dim) = q.shape[1], sizes
    rows = as_group_rows(q, groups)

    def block(carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
        number, sums = carry
        start = jnp.minimum(number * BLOCK, size - BLOCK)  # the last block begins earlier, with positions seen before
        positions = jax.lax.dynamic_slice_in_dim(mask.key_positions, start, BLOCK, axis=1)
        seen = Mask(mask.query_positions, positions, window=mask.window).dense()
        seen &= start + jnp.arange(BLOCK) >= number * BLOCK
        seen = seen_by_rows(seen, q.shape[2] // groups)
        return number + 1, _add(sums, rows, *read(start), seen, soft_cap)

    first = None if sinks is None else sinks_of_rows(sinks, groups, length)
    start = jnp.zeros((), num_used.dtype), _start(rows, value_dim, first)
    _, (_, total, out) = jax.lax.while_loop(lambda carry: carry[0] * BLOCK < num_used, block, start)
    return from_group_rows((out * jnp.where(total > 0, 1 / total, 0.0)).astype(q.dtype), length)


def _start(rows: Float[Array, "B K N Dk"], value_dim: int, sinks: Float[Array, "K N 1"] | None) -> Sums:
    """Before the first block; a sink is a key that every query sees and whose value is zero (gpt-oss)."""
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
    """The sums with one more block of keys."""
    top, total, out = sums
    scores = group_product(rows, keys, 3, 3)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(seen, scores, MASKED)
    new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
    shrunk = jnp.exp(top - new_top)
    weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
    total = total * shrunk + weights.sum(-1, keepdims=True)
    return new_top, total, out * shrunk + group_product(weights.astype(values.dtype), values, 3, 2)
