"""Attention to pages on TPUs: one Pallas kernel for decode rows and chunks of prompts.

A step of the grid is a block of pages of one row, so rows of any lengths leave no step idle; the next step's pages, of
the same row or of the next, are copied from the HBM while this one's are multiplied (Kwon et al. 2023,
"PagedAttention"; Dao et al. 2022, whose running sums these are). The store of all layers stays where it is: a layer's
slice of it would be a copy. What must hold: a row's queries are at consecutive positions, and behind them there is only
padding, whose output is that of the last query's keys or zero; a table has pages of the store only, as nobody checks.

Values of 8 bits are exact in bfloat16 and are multiplied there; their scales lie along the lanes, as scores do, so a
scale is a factor of the scores of its key, and of its value's weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.attention import as_group_rows, from_group_rows
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged_rows import Rows

VMEM_BYTES = 64 << 20


@dataclass(frozen=True)
class Sizes:
    """What is known when the kernel is traced."""

    block: int  # pages in a step
    page: int  # positions in a page
    entry: Entry
    per_group: int  # query heads of a key head
    scale: float
    soft_cap: float | None
    window: int | None


def paged_flash(
    q: Float[Array, "B T H Dk"],
    store: PageStore,
    layer: Int[Array, ""] | int,
    rows: Rows,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H Dv"]:
    """As `paged_attention`."""
    (_, num_queries, num_heads, _), groups = q.shape, store.num_heads
    assert rows.steps is not None, "rows for TPUs have them"
    pages = rows.steps.num_pages, rows.size, store.entry
    sizes = Sizes(*pages, num_heads // groups, scale, soft_cap, rows.window)
    out = _call(sizes, rows, as_group_rows(q, groups), store, layer, sinks, interpret)
    return from_group_rows(out, num_queries)


def _call(
    sizes: Sizes,
    rows: Rows,
    q: Float[Array, "B K rows Dk"],
    store: PageStore,
    layer: Array | int,
    sinks: Array | None,
    interpret: bool,
) -> Float[Array, "B K rows Dv"]:
    (batch, groups, num_rows, _), steps = q.shape, rows.steps
    assert steps is not None, "rows for TPUs have them"
    held, value_dim = jax.tree.leaves(store), store.entry.value_dim  # values, and scales if there are any
    sink = None if sinks is None else _of_rows(sinks, groups, num_rows)

    def of_row(i, layer, row, *_):
        return (row[i], 0, 0, 0)

    grid = (steps.row, steps.block, steps.is_first, steps.is_last)
    prefetch = (jnp.asarray(layer, jnp.int32)[None], *grid, rows.table.reshape(-1), rows.start, rows.last)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    whole = None if sink is None else pl.BlockSpec(sink.shape, lambda i, *_: (0, 0, 0))
    buffers = [pltpu.VMEM((2, sizes.block, *store.shape[2:]), store.dtype) for store in held]
    sums = [pltpu.VMEM((groups, num_rows, width), jnp.float32) for width in (LANES, LANES, value_dim)]
    return pl.pallas_call(
        partial(_kernel, sizes, len(held), rows.table.shape[1]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(steps.count,),
            in_specs=[pl.BlockSpec((None, *q.shape[1:]), of_row), whole, *[anywhere] * len(held)],
            out_specs=pl.BlockSpec((None, groups, num_rows, value_dim), of_row),
            scratch_shapes=[*buffers, pltpu.SemaphoreType.DMA((2, len(held))), *sums],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, groups, num_rows, value_dim), q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=VMEM_BYTES,
            disable_bounds_checks=True,  # of each copy's addresses: half of all instructions
        ),
        name="paged",
        interpret=interpret,
    )(*prefetch, q, sink, *held)


def _of_rows(sinks: Float[Array, " H"], groups: int, num_rows: int) -> Float[Array, "K rows 128"]:
    """Each row's sink, along the lanes."""
    per_group = sinks.size // groups
    by_row = jnp.tile(sinks.astype(jnp.float32).reshape(groups, per_group), (1, -(-num_rows // per_group)))
    return jnp.broadcast_to(by_row[:, :num_rows, None], (groups, num_rows, LANES))


def _kernel(sizes: Sizes, num_held: int, per_row: int, layer, row, block, is_first, is_last, table, start, last, q,
            sink, *refs):  # fmt: skip
    """One step: a row's queries against a block of its pages."""
    held, out = refs[:num_held], refs[num_held]
    buffers, semaphore, (m, l, acc) = refs[num_held + 1 : -4], refs[-4], refs[-3:]
    step, num_steps = pl.program_id(0), pl.num_programs(0)

    def copies(of: Array):
        """Those of a step's pages; a block's pages behind the row's last one are that again."""
        place, first = jax.lax.rem(of, 2), block[of] * sizes.block
        newest = jax.lax.div(jnp.maximum(last[row[of]], 0), sizes.page)
        for number in range(sizes.block):
            page = table[row[of] * per_row + jnp.minimum(first + number, newest)]
            for which, (store, buffer) in enumerate(zip(held, buffers, strict=True)):
                yield pltpu.make_async_copy(
                    store.at[layer[0], page], buffer.at[place, number], semaphore.at[place, which]
                )

    @pl.when(step == 0)
    def _():
        for copy in copies(step):
            copy.start()

    @pl.when(step + 1 < num_steps)
    def _():
        for copy in copies(step + 1):
            copy.start()

    @pl.when(is_first[step] == 1)
    def _():
        m[...] = jnp.full_like(m, MASKED) if sink is None else sink[...]
        l[...] = jnp.full_like(l, 0.0 if sink is None else 1.0)
        acc[...] = jnp.zeros_like(acc)

    for copy in copies(step):
        copy.wait()
    seen = _seen(sizes, q.shape[1], block[step], start[row[step]], last[row[step]])
    place = jax.lax.rem(step, 2)
    scales = _scales(sizes, *(buffer[place] for buffer in buffers[1:]))  # of all heads
    for head in range(q.shape[0]):
        own = [buffers[0][place, :, number, head] for number in range(sizes.entry.slices)]
        slices = [one.reshape(sizes.block * sizes.page, -1) for one in own]
        entries = jnp.concatenate(slices, axis=1).astype(q.dtype)
        _add(sizes, q[head], entries, scales(head), seen, m.at[head], l.at[head], acc.at[head])

    @pl.when(is_last[step] == 1)
    def _():
        total = l[:, :, :1]
        out[...] = (acc[...] * jnp.where(total > 0, 1 / total, 0.0)).astype(out.dtype)


def _scales(sizes: Sizes, scale: Array | None = None) -> Callable[[int], list[Array] | None]:
    """The scale of each part of a head's entries in a block, rows of lanes; None if there is none."""
    if scale is None:
        return lambda head: None
    rows = jnp.concatenate([scale[number] for number in range(sizes.block)], axis=1)
    num = len(sizes.entry.parts)
    return lambda head: [rows[part : part + 1] for part in range(head * num, head * num + num)]


def _seen(sizes: Sizes, num_rows: int, block: Array, start: Array, last: Array) -> Array:
    """Which keys of a block each row sees."""
    shape = (num_rows, sizes.block * sizes.page)
    keys = block * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    queries = start + jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, shape, 0), sizes.per_group)
    seen = (keys <= queries) & (keys <= last)
    return seen if sizes.window is None else seen & (keys > queries - sizes.window)


def _add(sizes: Sizes, q: Array, entries: Array, scales: list[Array] | None, seen: Array, m, l, acc) -> None:
    """Adds a block of a head's entries to the running maximum, sum and output."""
    scores = _scores(sizes.entry, q, entries, scales) * sizes.scale
    if sizes.soft_cap is not None:
        scores = sizes.soft_cap * jnp.tanh(scores / sizes.soft_cap)
    scores = jnp.where(seen, scores, MASKED)
    m_next = jnp.maximum(m[...], scores.max(-1, keepdims=True))
    p = jnp.where(seen, jnp.exp(scores - m_next[:, :1]), 0.0)
    alpha = jnp.exp(m[...] - m_next)
    m[...] = m_next
    l[...] = l[...] * alpha + p.sum(-1, keepdims=True)
    p = p if scales is None else p * scales[sizes.entry.value]
    values = entries[:, sizes.entry.cuts[sizes.entry.value]]
    acc[...] = acc[...] * alpha[:, :1] + jnp.dot(p.astype(q.dtype), values, preferred_element_type=jnp.float32)


def _scores(entry: Entry, q: Array, entries: Array, scales: list[Array] | None) -> Array:
    """Products of queries and keys; where parts of a key have their scales, part by part."""
    cuts = entry.cuts[: entry.num_keys]
    if scales is None:
        return _product(q, entries[:, : cuts[-1].stop])
    first, *others = (_product(q[:, cut], entries[:, cut]) * scales[n] for n, cut in enumerate(cuts))
    return sum(others, start=first)


def _product(q: Array, keys: Array) -> Array:
    return jax.lax.dot_general(q, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
