"""Attention to pages on NVIDIA's GPUs: one kernel, in Triton by Pallas, for decode rows and chunks of prompts.

A program has some rows of one key head's queries and a split of the positions, which it reads page after page where
they are, from the first that a query sees to the newest; what the splits of a row give is joined at the end, as each
has its running maximum and sum (Dao et al. 2023, "Flash-Decoding"; Kwon et al. 2023, "PagedAttention"). How many splits
there are follows from shapes alone, so a row's result does not depend on the others. Values of 8 bits are exact in the
queries' dtype; a scale is a factor of its key's scores, and of its value's weights. What must hold is what
`paged_flash.py` says.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lifecycle.core.platform import device_kind
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.attention import as_group_rows, from_group_rows
from lifecycle.kernels.mask import MASKED
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged_rows import Rows

PROGRAMS = 264  # that fill a GPU: two for each of an H100's 132 multiprocessors
SIDE, WIDE_SIDE, WIDE = 64, 32, 256  # positions of a step and rows of a chunk's program; where entries are wider
FEWEST = 256  # positions of a split at least, as joining it has a price
NARROWEST = 16  # the shortest side of a product
WITHOUT_FP8 = re.compile(r"V100|T4|A10|A30|A40|A800|RTX 30|RTX A")  # Triton has no conversion of them there


@dataclass(frozen=True)
class Sizes:
    """What is known when the kernel is traced."""

    page: int  # positions in a page
    block: int  # and in a step
    per_row: int  # pages in a row's table
    per_split: int  # steps of a split
    rows: int  # of a program
    row_blocks: int  # programs for the rows of a key head
    per_group: int  # query heads of a key head
    entry: Entry
    scale: float
    soft_cap: float | None
    window: int | None


def takes(store: PageStore) -> bool:
    """Whether the kernel can read a store: its products have sides that are powers of two, and the GPU its dtype.
    Offsets into an array of up to 4 GiB are of 32 bits with a sign, too few for more than 2^31 values."""
    values, sides = store.values, (*store.entry.parts, store.values.shape[4])
    has_offsets = values.size <= 2**31 or values.size * values.dtype.itemsize > 2**32
    has_dtype = values.dtype != jnp.float8_e4m3fn or WITHOUT_FP8.search(device_kind()) is None
    return has_offsets and has_dtype and all(side >= NARROWEST and side & (side - 1) == 0 for side in sides)


def paged_gpu(
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
    (batch, length, heads, _), groups = q.shape, store.num_heads
    per_group, side = heads // groups, SIDE if store.entry.width <= WIDE else WIDE_SIDE
    block, num_rows = min(side, rows.size), NARROWEST if length * per_group <= NARROWEST else side
    row_blocks, positions = -(-length * per_group // num_rows), rows.table.shape[1] * rows.size
    splits = max(1, min(-(-PROGRAMS // (batch * groups * row_blocks)), positions // FEWEST))
    num_steps = positions // block
    pages = rows.size, block, rows.table.shape[1], -(-num_steps // splits)
    sizes = Sizes(*pages, num_rows, row_blocks, per_group, store.entry, scale, soft_cap, rows.window)
    sums = _call(sizes, splits, _group_rows(q, groups, row_blocks * num_rows), store, layer, rows, interpret)
    sink = None if sinks is None else jnp.tile(sinks.astype(jnp.float32).reshape(groups, per_group), (1, length))
    return from_group_rows(_joined(sums, length * per_group, sink), length).astype(q.dtype)


def _group_rows(q: Float[Array, "B T H D"], groups: int, num_rows: int) -> Float[Array, "B K rows D"]:
    """The queries of a group as rows of its key head, padded to `num_rows`."""
    rows = as_group_rows(q, groups)
    return jnp.pad(rows, ((0, 0), (0, 0), (0, num_rows - rows.shape[2]), (0, 0)))


def _joined(
    sums: tuple[Array, Array, Array], num_rows: int, sinks: Float[Array, "K R"] | None
) -> Float[Array, "B K R Dv"]:
    """The first rows' outputs from the sums of their splits, as `_call` gives them; a sink is a key of value zero that
    every query sees."""
    out, top, total = (x[:, :, :, :num_rows] for x in sums)
    most = top.max(0) if sinks is None else jnp.maximum(top.max(0), sinks)
    weight = jnp.exp(top - most)
    norm = (total * weight).sum(0) + (0.0 if sinks is None else jnp.exp(sinks - most))
    return (out * weight[..., None]).sum(0) * jnp.where(norm > 0, 1 / norm, 0.0)[..., None]


def _call(
    sizes: Sizes, splits: int, q: Float[Array, "B K R Dk"], store: PageStore, layer: Any, rows: Rows, interpret: bool
) -> tuple[Array, Array, Array]:
    """Each split's weighted values `[splits, B, K, R, Dv]`, largest scores and normalisers `[splits, B, K, R]`."""
    batch, groups, num_rows, width = q.shape

    def of_rows(row, place, split):
        return (row, place // sizes.row_blocks, place % sizes.row_blocks, 0)

    def of_split(row, place, split):
        return (split * batch + row, place // sizes.row_blocks, place % sizes.row_blocks)

    held = (jnp.asarray(layer, jnp.int32)[None], rows.table.reshape(-1), rows.start, rows.last)
    anywhere, value_dim = pl.BlockSpec(memory_space=pl.ANY), sizes.entry.value_dim
    small, shape = pl.BlockSpec((None, None, sizes.rows), of_split), (splits * batch, groups, num_rows)
    large = pl.BlockSpec((None, None, sizes.rows, value_dim), lambda *place: (*of_split(*place), 0))
    queries = pl.BlockSpec((None, None, sizes.rows, width), of_rows)
    stored = jax.tree.leaves(store)
    sums = pl.pallas_call(
        partial(_kernel, sizes),
        grid=(batch, groups * sizes.row_blocks, splits),
        in_specs=[*[anywhere] * len(held), queries, *[anywhere] * len(stored)],
        out_specs=[large, small, small],
        out_shape=[jax.ShapeDtypeStruct(own, jnp.float32) for own in ((*shape, value_dim), shape, shape)],
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2),
        name="paged",
        interpret=interpret,
    )(*held, q, *stored)
    out, top, total = (x.reshape(splits, batch, *x.shape[1:]) for x in sums)
    return out, top, total


def _kernel(sizes: Sizes, layer, table, start, last, q, values, *refs) -> None:
    """One program: some rows' queries against a split of the positions."""
    (*scale, out, top, total), row, split = refs, pl.program_id(0), pl.program_id(2)
    head, number = pl.program_id(1) // sizes.row_blocks, pl.program_id(1) % sizes.row_blocks
    offset, newest = number * sizes.rows, last[row]
    queries = start[row] + (offset + jnp.arange(sizes.rows)) // sizes.per_group
    oldest = start[row] + offset // sizes.per_group
    seen_to = jnp.minimum(start[row] + (offset + sizes.rows - 1) // sizes.per_group, newest)
    begin = 0 if sizes.window is None else jnp.maximum(oldest - sizes.window + 1, 0) // sizes.block
    begin = jnp.maximum(begin, split * sizes.per_split)
    end = jnp.minimum((seen_to + sizes.block) // sizes.block, (split + 1) * sizes.per_split)
    cuts = [pl.ds(cut.start, cut.stop - cut.start) for cut in sizes.entry.cuts]
    parts, is_whole = [q[:, cut] for cut in cuts[: sizes.entry.num_keys]], sizes.entry.slices == 1
    lies = [(0, cut) if is_whole else (n, pl.ds(0, cut.size)) for n, cut in enumerate(cuts)]  # slice and dimensions

    def step(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        first = number * sizes.block
        page = table[row * sizes.per_row + first // sizes.page]
        places = pl.ds(first % sizes.page, sizes.block)
        entries = [values[layer[0], page, n, head, places, cut].astype(q.dtype) for n, cut in lies]
        scales = [scale[0][layer[0], page, head * len(cuts) + n, places] for n in range(len(cuts))] if scale else None
        keys = first + jnp.arange(sizes.block)
        seen = (keys[None, :] <= queries[:, None]) & (keys <= newest)[None, :]
        if sizes.window is not None:
            seen &= keys[None, :] > queries[:, None] - sizes.window
        return _add(sizes, parts, entries, scales, seen, sums)

    sums = jnp.full(sizes.rows, MASKED, jnp.float32), jnp.zeros(sizes.rows, jnp.float32)
    zeros = jnp.zeros((sizes.rows, sizes.entry.value_dim), jnp.float32)
    top[...], total[...], out[...] = jax.lax.fori_loop(begin, end, step, (*sums, zeros))


def _add(
    sizes: Sizes,
    q: list[Array],
    entries: list[Array],
    scales: list[Array] | None,
    seen: Array,
    sums: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """The largest scores, normalisers and weighted values with one more block of positions."""
    top, total, out = sums
    products = [_product(own, key.T) for own, key in zip(q, entries, strict=False)]
    first, *others = products if scales is None else [x * scales[n][None, :] for n, x in enumerate(products)]
    scores = sum(others, start=first) * sizes.scale
    if sizes.soft_cap is not None:
        scores = sizes.soft_cap * jnp.tanh(scores / sizes.soft_cap)
    scores = jnp.where(seen, scores, MASKED)
    new_top = jnp.maximum(top, scores.max(1))
    weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
    shrunk = jnp.exp(top - new_top)
    total = total * shrunk + weights.sum(1)
    weights = weights if scales is None else weights * scales[sizes.entry.value][None, :]
    values = entries[sizes.entry.value]
    return new_top, total, out * shrunk[:, None] + _product(weights.astype(values.dtype), values)


def _product(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
