"""Attention to pages on TPUs: one Pallas kernel for decode rows and chunks of prompts.

A step of the grid is a block of pages of one row, so rows of any lengths leave no step idle; the next step's pages, of
the same row or of the next, are copied from the HBM while this one's are multiplied (Kwon et al. 2023,
"PagedAttention"; Dao et al. 2022, whose running sums these are). The store of all layers stays where it is: a layer's
slice of it would be a copy. What must hold: a row's queries are at consecutive positions, and behind them there is only
padding, whose output is that of the last query's keys or zero.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED

# Positions of a block, by the rows of a key head: of tokens so many that a step's fixed work is hidden (of a v5e, one
# key head, 16 rows, 429 and 646 instruction bundles for 512 and 1,024 positions, which take 480 and 960 cycles to
# copy); of chunks such that a head's scores are 2 MB (256 tokens, 4 query heads a key head).
BLOCK, LONG_BLOCK, FEW_ROWS = 512, 1024, 64
VMEM_BYTES = 64 << 20


@dataclass(frozen=True)
class Sizes:
    """What is known when the kernel is traced."""

    block: int  # pages in a step
    page: int  # positions in a page
    per_group: int  # query heads of a key head
    value_dim: int
    scale: float
    soft_cap: float | None
    window: int | None


class Blocks(NamedTuple):
    """The grid: for each step the row, the block of its pages, and whether that is the row's first and last."""

    row: Int[Array, " steps"]
    block: Int[Array, " steps"]
    is_first: Int[Array, " steps"]
    is_last: Int[Array, " steps"]


def blocks_of(first: Int[Array, " B"], last: Int[Array, " B"], most: int) -> tuple[Blocks, Int[Array, ""]]:
    """The steps for each row's blocks `first` to `last`, at most `most` of a row, and how many they are."""
    counts = last - first + 1
    rows, steps = jnp.arange(first.size), jnp.arange(first.size * most)[:, None]
    ends = (counts * (rows <= rows[:, None])).sum(1)  # one pass over [steps, rows], where XLA's sums would be many
    begins = ends - counts
    own = (begins <= steps) & (steps < ends)
    row, begin, end, block = (jnp.where(own, x, 0).sum(1) for x in (rows, begins, ends, first - begins + steps))
    step = steps[:, 0]
    blocks = Blocks(row, block, step == begin, step == end - 1)
    return Blocks(*(x.astype(jnp.int32) for x in blocks)), ends[-1]


def paged_flash(
    q: Float[Array, "B T H Dk"],
    stores: tuple[Float[Array, "L pages K S Dk"], Float[Array, "L pages K S Dv"] | None],
    layer: Int[Array, ""] | int,
    table: Int[Array, "B per_row"],
    positions: Int[Array, "B T"],
    length: int,
    *,
    value_dim: int,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H Dv"]:
    """As `paged_attention`. Without a store of values these are the keys' first `value_dim` dimensions."""
    (batch, num_queries, num_heads, _), (groups, page) = q.shape, stores[0].shape[2:4]
    rows = _group_rows(q, groups)
    num_pages = min(max((LONG_BLOCK if rows.shape[2] <= FEW_ROWS else BLOCK) // page, 1), table.shape[1])
    sizes = Sizes(num_pages, page, num_heads // groups, value_dim, scale, soft_cap, window)
    start, last = positions[:, 0], jnp.where(positions < length, positions, -1).max(axis=1)
    first_seen = jnp.zeros_like(start) if window is None else jnp.maximum(start - window + 1, 0)
    span = sizes.block * page
    most = -(-table.shape[1] // sizes.block)
    first = jnp.where(last < 0, 0, first_seen // span)
    blocks, num_steps = blocks_of(first, jnp.maximum(last, 0) // span, most)
    table = jnp.clip(table, 0, stores[0].shape[1] - 1)  # the kernel does not check what it copies
    out = _call(sizes, blocks, num_steps, rows, stores, layer, table, start, last, sinks, interpret)
    out = out[:, :, : num_queries * sizes.per_group].reshape(batch, groups, num_queries, -1, value_dim)
    return out.swapaxes(1, 2).reshape(batch, num_queries, num_heads, value_dim)


def _group_rows(q: Float[Array, "B T H D"], groups: int) -> Float[Array, "B K rows D"]:
    """The queries of a group as rows of its key head, padded to whole tiles of 16."""
    batch, length, heads, dim = q.shape
    rows = q.reshape(batch, length, groups, heads // groups, dim).swapaxes(1, 2).reshape(batch, groups, -1, dim)
    return jnp.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 16), (0, 0)))


def _call(
    sizes: Sizes,
    blocks: Blocks,
    num_steps: Array,
    rows: Float[Array, "B K rows Dk"],
    stores: tuple[Array, Array | None],
    layer: Array | int,
    table: Array,
    start: Array,
    last: Array,
    sinks: Array | None,
    interpret: bool,
) -> Float[Array, "B K rows Dv"]:
    batch, groups, num_rows, _ = rows.shape
    held = [store for store in stores if store is not None]
    sink = None if sinks is None else _of_rows(sinks, groups, num_rows)

    def of_row(i, layer, row, *_):
        return (row[i], 0, 0, 0)

    prefetch = (jnp.asarray(layer, jnp.int32)[None], *blocks, table.reshape(-1), start, last)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    whole = None if sink is None else pl.BlockSpec(sink.shape, lambda i, *_: (0, 0, 0))
    buffers = [pltpu.VMEM((2, sizes.block, *store.shape[2:]), store.dtype) for store in held]
    sums = [pltpu.VMEM((groups, num_rows, width), jnp.float32) for width in (LANES, LANES, sizes.value_dim)]
    return pl.pallas_call(
        partial(_kernel, sizes, len(held), table.shape[1]),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(num_steps,),
            in_specs=[pl.BlockSpec((None, *rows.shape[1:]), of_row), whole, *[anywhere] * len(held)],
            out_specs=pl.BlockSpec((None, groups, num_rows, sizes.value_dim), of_row),
            scratch_shapes=[*buffers, pltpu.SemaphoreType.DMA((2, len(held))), *sums],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, groups, num_rows, sizes.value_dim), rows.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=VMEM_BYTES,
            disable_bounds_checks=True,  # of each copy's addresses: half of all instructions
        ),
        name="paged",
        interpret=interpret,
    )(*prefetch, rows, sink, *held)


def _of_rows(sinks: Float[Array, " H"], groups: int, num_rows: int) -> Float[Array, "K rows 128"]:
    """Each row's sink, along the lanes."""
    per_group = sinks.size // groups
    by_row = jnp.tile(sinks.astype(jnp.float32).reshape(groups, per_group), (1, -(-num_rows // per_group)))
    return jnp.broadcast_to(by_row[:, :num_rows, None], (groups, num_rows, LANES))


def _kernel(sizes: Sizes, num_stores: int, per_row: int, layer, row, block, is_first, is_last, table, start, last, q,
            sink, *refs):  # fmt: skip
    """One step: a row's queries against a block of its pages."""
    held, out = refs[:num_stores], refs[num_stores]
    buffers, semaphore, (m, l, acc) = refs[num_stores + 1 : -4], refs[-4], refs[-3:]
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
    for head in range(q.shape[0]):
        keys, *values = (
            buffer[jax.lax.rem(step, 2), :, head].reshape(sizes.block * sizes.page, -1) for buffer in buffers
        )
        v = values[0] if values else keys[:, : sizes.value_dim]
        _add(sizes, q[head], keys, v, seen, m.at[head], l.at[head], acc.at[head])

    @pl.when(is_last[step] == 1)
    def _():
        total = l[:, :, :1]
        out[...] = (acc[...] * jnp.where(total > 0, 1 / total, 0.0)).astype(out.dtype)


def _seen(sizes: Sizes, num_rows: int, block: Array, start: Array, last: Array) -> Array:
    """Which keys of a block each row sees."""
    shape = (num_rows, sizes.block * sizes.page)
    keys = block * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    queries = start + jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, shape, 0), sizes.per_group)
    seen = (keys <= queries) & (keys <= last)
    return seen if sizes.window is None else seen & (keys > queries - sizes.window)


def _add(sizes: Sizes, q: Array, keys: Array, values: Array, seen: Array, m, l, acc) -> None:
    """Adds a block of a head's keys to the running maximum, sum and output."""
    product = jax.lax.dot_general(q, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    scores = product * sizes.scale
    if sizes.soft_cap is not None:
        scores = sizes.soft_cap * jnp.tanh(scores / sizes.soft_cap)
    scores = jnp.where(seen, scores, MASKED)
    m_next = jnp.maximum(m[...], scores.max(-1, keepdims=True))
    p = jnp.where(seen, jnp.exp(scores - m_next[:, :1]), 0.0)
    alpha = jnp.exp(m[...] - m_next)
    m[...] = m_next
    l[...] = l[...] * alpha + p.sum(-1, keepdims=True)
    acc[...] = acc[...] * alpha[:, :1] + jnp.dot(p.astype(values.dtype), values, preferred_element_type=jnp.float32)
