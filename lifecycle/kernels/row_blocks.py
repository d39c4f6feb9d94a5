"""Positions of a batch in blocks of rows, those that are asked for first; blocks without any are passed over.

Of a row of fine-tuning a quarter to a half is learned, and only there does a loss need logits. The number of blocks
that are computed is known when the program runs; on a mesh, devices that exchange something within a block have the
same positions, and so the same number. What must hold: nothing depends on what stands where nobody asks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Int

AT_MOST = "at_most_"  # with a number, in the name of a loop whose trips are known when it runs: the most there can be


class Asked(NamedTuple):
    """Which positions are asked for, and their order: those first."""

    order: Int[Array, " N"]  # the position at each place
    places: Int[Array, " N"]  # the place of each position
    number: Int[Array, ""]


def asked_first(wanted: Bool[Array, "B T"]) -> Asked:
    """The positions of `wanted` before the others, each in their order."""
    flat = wanted.reshape(-1)
    number = flat.sum()
    places = jnp.where(flat, jnp.cumsum(flat) - 1, number + jnp.cumsum(~flat) - 1)
    order = jnp.zeros_like(places).at[places].set(jnp.arange(flat.size), unique_indices=True)
    return Asked(order, places, number)


def blocked(x: Array, size: int) -> Array:
    """`[B, T, ...]` to `[blocks, B, t, ...]` with at most `size` positions in each; padded with zeros at the end."""
    batch, length = x.shape[:2]
    size = min(length, max(1, size // batch))
    num = -(-length // size)
    x = jnp.pad(x, [(0, 0), (0, num * size - length)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, num, size, *x.shape[2:]).swapaxes(0, 1)


def unblocked(blocks: Array, length: int) -> Array:
    """The reverse, of `[blocks, B, t, ...]`, for rows of `length` positions."""
    num, batch, size = blocks.shape[:3]
    return blocks.swapaxes(0, 1).reshape(batch, num * size, *blocks.shape[3:])[:, :length]


def row_blocks(x: Array, size: int, asked: Asked | None = None) -> Array:
    """`[B, T, ...]` to `[blocks, rows, ...]` with at most `size` positions in each, padded with zeros at the end."""
    rows = jnp.asarray(x).reshape(-1, *x.shape[2:])  # of a host's batch, they cannot be taken in a traced order
    return blocked((rows if asked is None else rows[asked.order])[None], size)[:, 0]


def of_rows(blocks: Array, shape: tuple[int, ...], asked: Asked | None = None) -> Array:
    """The reverse: `[blocks, rows, ...]` to `[B, T, ...]`, zero where nobody asked."""
    batch, length = shape
    rows = blocks.reshape(-1, *blocks.shape[2:])[: batch * length]
    if asked is not None:
        is_asked = (asked.places < asked.number).reshape(-1, *(1,) * (rows.ndim - 1))
        rows = jnp.where(is_asked, rows[asked.places], 0)
    return rows.reshape(batch, length, *rows.shape[1:])


def over_blocks[C](
    step: Callable[[C, Any], tuple[C, Any]], carry: C, blocks: Any, asked: Asked | None = None
) -> tuple[C, Any]:
    """`jax.lax.scan` over blocks of rows; without those that nobody asked for, whose results are zero."""
    if asked is None:
        return jax.lax.scan(step, carry, blocks)
    num, size = jax.tree.leaves(blocks)[0].shape[:2]

    def at(number: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), blocks)

    def body(number: Array, so_far: tuple[C, Any]) -> tuple[C, Any]:
        carry, out = step(so_far[0], at(number))
        put = jax.lax.dynamic_update_index_in_dim
        return carry, jax.tree.map(lambda every, one: put(every, one, number, 0), so_far[1], out)

    shapes = jax.eval_shape(step, carry, at(0))[1]
    outs = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype), shapes)
    with jax.named_scope(f"{AT_MOST}{num}"):
        return jax.lax.fori_loop(0, (asked.number + size - 1) // size, body, (carry, outs))
