"""Attention of new tokens to the keys and values that pages hold (Kwon et al. 2023, "PagedAttention").

A page has the keys or values of `S` consecutive positions of one row, heads before positions, so that its products need
no transposed copy; a table says which pages a row has, in the order of its positions. A CPU reads page after page, as
flash attention does (Dao et al. 2022), and only those that a query may see: a row of 100 tokens in a context of 2,048
costs what 128 cost. TPUs run a kernel (`kernels/paged_flash.py`) if head dimensions fill their lanes, NVIDIA's GPUs
another (`kernels/paged_gpu.py`) if they are powers of two. Otherwise a row's pages are gathered and read at once.
"""

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
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED, Mask
from lifecycle.kernels.page_store import PageStore
from lifecycle.kernels.paged_rows import Rows
from lifecycle.kernels.row_sum import row_sum

type Sums = tuple[Array, Array, Array]  # of softmax so far: the largest score, the normaliser, the weighted values


def paged_attention(
    q: Float[Array, "B T H Dk"],
    store: PageStore,
    layer: Int[Array, ""] | int,
    rows: Rows,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """As `attention`, from the tokens of rows to what their pages hold.

    A row's result does not depend on the others, to the last bit: a page that no query sees changes no sum.
    """
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if platform() == "tpu" and all(width % LANES == 0 for width in store.entry.parts):
        from lifecycle.kernels.paged_flash import paged_flash

        return paged_flash(q, store, layer, rows, scale=scale, soft_cap=soft_cap, sinks=sinks)
    if platform() == "gpu":
        from lifecycle.kernels.paged_gpu import paged_gpu, takes

        if takes(store):
            return paged_gpu(q, store, layer, rows, scale=scale, soft_cap=soft_cap, sinks=sinks)
    if platform() == "cpu" and soft_cap is None and sinks is None and has_kernel("paged_cpu"):
        from lifecycle.kernels.paged_cpu import paged_cpu, takes

        if takes(store, layer, rows):
            return paged_cpu(q, store, rows, scale=scale)
    if platform() != "cpu" or rows.table.shape[1] == 1:
        k, v = (x.astype(q.dtype) for x in store.rows(layer, rows.table))
        here = jnp.broadcast_to(jnp.arange(k.shape[1]), (q.shape[0], k.shape[1]))
        mask = Mask(rows.positions, here, window=rows.window)
        return attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks)
    return _page_by_page(q * scale, store, layer, rows, soft_cap, sinks)


def _page_by_page(
    q: Array, store: PageStore, layer: Array | int, rows: Rows, soft_cap: float | None, sinks: Array | None
) -> Array:
    num_queries, groups = q.shape[1], store.num_heads
    queries = as_group_rows(q, groups).astype(jnp.float32)  # a CPU multiplies in float32 anyway

    def one_page(carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
        number, sums = carry
        here = jnp.broadcast_to(number * rows.size + jnp.arange(rows.size), (q.shape[0], rows.size))
        seen = Mask(rows.positions, here, window=rows.window).dense()
        seen = seen_by_rows(seen, q.shape[2] // groups)
        k, v = (x.astype(jnp.float32) for x in store.page(layer, rows.table, number))
        return number + 1, _add(sums, queries, k, v, seen, soft_cap)

    first = None if sinks is None else sinks_of_rows(sinks, groups, num_queries)
    start = rows.begin, _start(queries, store.entry.value_dim, first)
    _, (_, total, out) = jax.lax.while_loop(lambda carry: carry[0] < rows.end, one_page, start)
    return from_group_rows((out * jnp.where(total > 0, 1 / total, 0.0)).astype(q.dtype), num_queries)


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
    total = total * shrunk + row_sum(weights)[..., None]
    return new_top, total, out * shrunk + group_product(weights, values, 3, 2)
