"""The three products of int8 training as TPU kernels that round their operands themselves, for `kernels/quantised.py`.

XLA cannot round an operand inside a product: it writes 8-bit copies of every activation and gradient, two passes over
the HBM each, and on a v6e (libtpu 0.0.50.1) those passes take what the faster products save. Here a block of rows, or
of columns, is in VMEM as a whole: its maxima are found there, it is rounded once into a buffer, and all products with
it follow. Two kernels make the three products: `quantised_rows` (the layer's output, and the gradient of its input)
rounds the left operand by rows; `quantised_columns` (the gradient of the weight) the right one by columns.

What must hold: values and scales are those of `quantised.rounded`, and sums are int32. A NaN is the largest of its row,
as in XLA's own maximum, which is the same one instruction (`vmax`) on a v6e. A block of the operand to be rounded is
fetched as soon as the one before it is rounded, so that one buffer is enough.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Shaped
from lifecycle.kernels.activation import Activation, gated
from lifecycle.kernels.layout import LANES

VMEM_BYTES, USED_BYTES = 96 << 20, 90 << 20  # the limit for a kernel, and what its buffers may take of it
SIDES = (2048, 1024, 512, 256, 128)  # of blocks
ENOUGH = 512  # rows of a block: for fewer, reading the other operand takes as long as multiplying
ROWS, PIECE = 32, 1024  # rows rounded at once (a register holds 32 rows of 8 bits), and columns of them
COLUMNS_ROWS = 128  # the same where columns are rounded: a tile that can be transposed
UNROLLED = 1 << 32  # multiplications of one loop body: 4,096 instruction bundles
WIDTH = 256  # of a matrix unit
TOP, SMALLEST = 127.0, 1e-30  # as in `quantised.rounded`
SHIFT = 1.5 * 2**23  # float32s of this size are integers


class Blocks(NamedTuple):
    """Rows and columns of the result's blocks."""

    rows: int
    columns: int


def has_blocks(rows: int, depth: int, columns: int) -> bool:
    """Whether there are blocks for all three products of `[rows, depth]` by `[depth, columns]`."""
    sides = rows_blocks(rows, depth, columns), rows_blocks(rows, columns, depth)
    return None not in sides and any(columns_blocks(rows, depth, columns, turned) for turned in (False, True))


def rows_blocks(rows: int, depth: int, columns: int, operands: int = 1) -> Blocks | None:
    """The blocks of `rows_product` for `[rows, depth]` by `[depth, columns]`; None if no blocks divide the sizes, or
    only ones for which the weight would be read too often. `operands` is 2 where the rows are made of a gate and its
    other half."""
    heights = [height for height in SIDES if rows % height == 0 and height >= min(rows, ENOUGH)]
    widths = [width for width in SIDES[1:] if columns % width == 0 and WIDTH * depth * width <= UNROLLED]
    for height in heights if depth % LANES == 0 else []:
        for width in widths:
            used = (2 * operands + 1) * height * depth + 2 * width * depth + 4 * height * (width + 2 * LANES)
            if used <= USED_BYTES:
                return Blocks(height, width)
    return None


def columns_blocks(rows: int, depth: int, columns: int, is_transposed: bool) -> Blocks | None:
    """The blocks of `columns_product` for `[rows, depth]` and `[rows, columns]`: rows of the result are the left
    operand's columns. None if no blocks divide the sizes, if all rows are too many for the VMEM, or if the left operand
    would be read too often."""
    if rows % COLUMNS_ROWS:
        return None
    resident, least = (0, min(columns, ENOUGH)) if is_transposed else (rows * depth, LANES)
    for width in SIDES[1:]:
        for side in SIDES[2:]:
            used = resident + rows * (2 * side + 3 * width + 4 * LANES) + 4 * side * width
            if depth % side == 0 and columns % width == 0 and width >= least and used <= USED_BYTES:
                return Blocks(side, width)
    return None


def rows_product(
    x: Float[Array, "N D"],
    values: Shaped[Array, "D F"],
    along: Float[Array, "1 D"] | None = None,
    across: Float[Array, "1 F"] | None = None,
    *,
    up: Float[Array, "N D"] | None = None,
    activation: Activation = "silu",
    is_turned: bool = False,
    interpret: bool = False,
) -> tuple[Float[Array, "N F"], Float[Array, " N"]]:
    """(`x`'s rows, rounded to int8, times the int8 `values`; the largest magnitude of each row).

    `across` multiplies the columns of the result; `along` those of `x`, before they are rounded. With `is_turned` the
    memory of `values` is best that of `[F, D]`; both forms take the same time, but not the copy from one to the other.
    With `up`, the rows are `gated(x, up, activation)`.
    The result has `x`'s dtype, the magnitudes are float32. `interpret` runs the kernel's Python on a CPU.
    """
    (rows, depth), width = x.shape, values.shape[1]
    operands = [x] if up is None else [x, up]
    blocks = rows_blocks(rows, depth, width, len(operands))
    assert blocks is not None, "ask has_blocks first"
    bm, bn = blocks
    whole, own = pl.BlockSpec((1, depth), lambda i, j: (0, 0)), pl.BlockSpec((1, bn), lambda i, j: (0, j))
    turned, plain = pl.BlockSpec((bn, depth), lambda i, j: (j, 0)), pl.BlockSpec((depth, bn), lambda i, j: (0, j))
    out, most = pl.pallas_call(
        partial(_rows_kernel, is_turned, activation),
        grid=(rows // bm, width // bn),
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY), None if up is None else pl.BlockSpec(memory_space=pl.ANY),
            turned if is_turned else plain, None if along is None else whole, None if across is None else own,
        ],
        out_specs=[
            pl.BlockSpec((bm, bn), lambda i, j: (i, j)),
            # as wide as it is in memory anyway: of `[N, 1]` XLA makes a copy, for which there is no VMEM
            pl.BlockSpec((bm, LANES), lambda i, j: (i, 0)),
        ],
        out_shape=[jax.ShapeDtypeStruct((rows, width), x.dtype), jax.ShapeDtypeStruct((rows, LANES), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((bm, depth), jnp.int8), pltpu.VMEM((ROWS, depth), jnp.float32),
            pltpu.SemaphoreType.DMA((len(operands),)), *(pltpu.VMEM((bm, depth), x.dtype) for _ in operands),
        ],
        compiler_params=_params(),
        name="quantised_rows",
        interpret=interpret,
    )(x, up, values.T if is_turned else values, along, across)  # fmt: skip
    return out, most[:, 0]


def _params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES)


def _rows_kernel(is_turned: bool, activation, x, up, values, along, across, out, most, *scratch) -> None:  # refs
    rounded, wide, semaphores, *buffers = scratch
    rows = rounded.shape[0]

    def fetch(block):
        pairs = enumerate(zip([x, up], buffers, strict=False))
        part = pl.ds(block * rows, rows)
        return [pltpu.make_async_copy(of.at[part], to, semaphores.at[index]) for index, (of, to) in pairs]

    def own(at, piece: slice) -> Array:
        halves = [buffer[at, piece].astype(jnp.float32) for buffer in buffers]
        row = halves[0] if up is None else gated(halves[0], halves[1], activation)
        return row if along is None else row * along[:, piece]

    _prepare(fetch, lambda: _round_rows(own, rounded, most, wide))

    @pl.loop(0, rows // (height := body_rows(rows, rounded.shape[1], out.shape[1])))
    def _(chunk) -> None:
        at = _slice(chunk, height)
        step = scale_of(most[at, 0:1])
        for part in _parts(out.shape[1]):
            right = values[part] if is_turned else values[:, part]
            product = _product(rounded[at], right, 1 if is_turned else 0) * step
            out[at, part] = (product if across is None else product * across[:, part]).astype(out.dtype)


def _prepare(fetch, round_block) -> None:
    """At the first step of each row of the grid: waits for its block, rounds it, and starts to fetch the next one."""
    block = pl.program_id(0)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        @pl.when(block == 0)
        def _() -> None:
            for copy in fetch(0):
                copy.start()

        for copy in fetch(block):
            copy.wait()
        round_block()

        @pl.when(block + 1 < pl.num_programs(0))
        def _() -> None:
            for copy in fetch(block + 1):
                copy.start()


def body_rows(rows: int, depth: int, columns: int) -> int:
    """How many rows one loop body multiplies."""
    height = min(rows, 2 * WIDTH)  # of fewer rows than a unit's side, its weights take longer to load than to use
    while height > WIDTH and height * depth * columns > UNROLLED:
        height //= 2
    return height


def _parts(columns: int) -> list[slice]:
    """The result's columns, as wide as a matrix unit: one part is scaled and written while the next is computed."""
    return [slice(first, min(first + WIDTH, columns)) for first in range(0, columns, WIDTH)]


def _slice(index, size: int):
    return pl.ds(pl.multiple_of(index * size, size), size)


def _product(left: Array, right: Array, dim: int) -> Array:
    dims = (((1,), (dim,)), ((), ()))
    return jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.int32).astype(jnp.float32)


def scale_of(most: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """What a step of the 8-bit values is, if the largest magnitude is `most`."""
    return _safe(most) / TOP


def _safe(most: Array) -> Array:
    return jnp.where(most < SMALLEST, 1.0, most)  # not `max`, which may drop a NaN


def to_int8(x: Float[Array, "*dims"]) -> Shaped[Array, "*dims"]:
    """`x` rounded to nearest, for magnitudes of at most 127: the last bits of a float32 this large are integers. It
    takes one instruction where a cast, which also clamps, takes two."""
    return jax.lax.bitcast_convert_type(x + SHIFT, jnp.int32).astype(jnp.int8)


def _round_rows(own, rounded, most, wide) -> None:  # refs; `own`: the values of rows and columns
    rows, depth = rounded.shape
    pieces = [slice(first, min(first + PIECE, depth)) for first in range(0, depth, PIECE)]

    @pl.loop(0, rows // ROWS)
    def _(chunk) -> None:
        at, maxima = _slice(chunk, ROWS), []
        for piece in pieces:
            wide[:, piece] = own(at, piece)
            maxima.append(_lanes_maximum(jnp.abs(wide[:, piece])))
        largest = reduce(jnp.maximum, maxima).max(1, keepdims=True)
        most[at] = jnp.broadcast_to(largest, (ROWS, LANES))
        factor = TOP / _safe(largest)
        for piece in pieces:
            rounded[at, piece] = to_int8(wide[:, piece] * factor)


def _lanes_maximum(x: Array) -> Array:
    """The largest of each row's values that share a lane."""
    return reduce(jnp.maximum, (x[:, first : first + LANES] for first in range(0, x.shape[1], LANES)))


def columns_product(
    x: Shaped[Array, "N D"],
    x_scale: Float[Array, " N"],
    grad: Float[Array, "N F"],
    *,
    is_transposed: bool,
    interpret: bool = False,
) -> Float[Array, "D F"]:
    """The sum over rows of `x` (int8, times a scale per row) times `grad`, whose columns are rounded to int8 after they
    are multiplied by `x_scale`; in `grad`'s dtype. With `is_transposed`, or if `x` is too large to stay in VMEM, its
    memory is that of `[F, D]`: as a gradient is needed that is scattered by columns. Where only one form has blocks, it
    is that one. `interpret` runs the kernel's Python on a CPU.
    """
    (rows, depth), width = x.shape, grad.shape[1]
    blocks = columns_blocks(rows, depth, width, is_transposed)
    if blocks is None:
        is_transposed = not is_transposed
        blocks = columns_blocks(rows, depth, width, is_transposed)
    assert blocks is not None, "ask has_blocks first"
    bk, bn = blocks
    if is_transposed:
        shape, out = (width, depth), pl.BlockSpec((bn, bk), lambda i, j: (i, j))
        of_x = pl.BlockSpec((rows, bk), lambda i, j: (0, j))
        scratch = [pltpu.VMEM((bn, rows), jnp.int8), pltpu.VMEM((bn, LANES), jnp.float32)]
    else:
        shape, out = (depth, width), pl.BlockSpec((bk, bn), lambda i, j: (j, i))
        # all of it stays in VMEM, transposed: blocks after the first row of the grid are those before, and not fetched
        of_x = pl.BlockSpec((rows, bk), lambda i, j: (0, jnp.where(i == 0, j, depth // bk - 1)))
        scratch = [pltpu.VMEM((rows, bn), jnp.int8), pltpu.VMEM((depth, rows), jnp.int8)]
    result = pl.pallas_call(
        _transposed_kernel if is_transposed else _columns_kernel,
        grid=(width // bn, depth // bk),
        in_specs=[of_x, pl.BlockSpec((rows, 1), lambda i, j: (0, 0)), pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=out,
        out_shape=jax.ShapeDtypeStruct(shape, grad.dtype),
        scratch_shapes=[
            pltpu.VMEM((rows, bn), grad.dtype), pltpu.VMEM((8, bn), jnp.float32), pltpu.SemaphoreType.DMA, *scratch,
        ],
        compiler_params=_params(),
        name="quantised_columns",
        interpret=interpret,
    )(x, x_scale[:, None], grad)  # fmt: skip
    return result.T if is_transposed else result


def _fetch_columns(grad, buffer, semaphore, block):
    return [pltpu.make_async_copy(grad.at[:, _slice(block, buffer.shape[1])], buffer, semaphore)]


def _columns_kernel(x, x_scale, grad, out, buffer, most, semaphore, rounded, turned) -> None:  # refs
    def store(at, values) -> None:
        rounded[at] = values

    _prepare(partial(_fetch_columns, grad, buffer, semaphore), lambda: _round_columns(buffer, x_scale, most, store))
    side = out.shape[0]
    own = _slice(pl.program_id(1), side)

    @pl.when(pl.program_id(0) == 0)
    def _() -> None:
        @pl.loop(0, x.shape[0] // COLUMNS_ROWS)
        def _(chunk) -> None:
            at = _slice(chunk, COLUMNS_ROWS)
            turned[own, at] = x[at].T

    step = scale_of(most[0:1])

    @pl.loop(0, side // (height := body_rows(side, x.shape[0], out.shape[1])))
    def _(chunk) -> None:
        left = turned[pl.ds(pl.multiple_of(own.start + chunk * height, height), height)]
        for part in _parts(out.shape[1]):
            product = _product(left, rounded[:, part], 0) * step[:, part]
            out[_slice(chunk, height), part] = product.astype(out.dtype)


def _transposed_kernel(x, x_scale, grad, out, buffer, most, semaphore, turned, steps) -> None:  # refs
    def store(at, values) -> None:
        turned[:, at] = values.T

    def round_block() -> None:
        _round_columns(buffer, x_scale, most, store)
        steps[...] = jnp.broadcast_to(scale_of(most[0:1]), (LANES, most.shape[1])).T

    _prepare(partial(_fetch_columns, grad, buffer, semaphore), round_block)

    @pl.loop(0, out.shape[0] // (height := body_rows(out.shape[0], x.shape[0], out.shape[1])))
    def _(chunk) -> None:
        at = _slice(chunk, height)
        for part in _parts(out.shape[1]):
            out[at, part] = (_product(turned[at], x[:, part], 0) * steps[at, 0:1]).astype(out.dtype)


def _round_columns(grad, x_scale, most, store) -> None:  # refs; the largest magnitudes go to the first row of `most`
    rows = grad.shape[0]
    most[...] = jnp.zeros_like(most)

    @pl.loop(0, rows // COLUMNS_ROWS)
    def _(chunk) -> None:
        at = _slice(chunk, COLUMNS_ROWS)
        scaled = jnp.abs(grad[at].astype(jnp.float32) * x_scale[at])
        most[...] = jnp.maximum(most[...], scaled.reshape(-1, *most.shape).max(0))

    most[...] = jnp.broadcast_to(most[...].max(0, keepdims=True), most.shape)

    @pl.loop(0, rows // COLUMNS_ROWS)
    def _(chunk) -> None:
        at = _slice(chunk, COLUMNS_ROWS)
        factor = TOP / _safe(most[0:1])
        store(at, to_int8(grad[at].astype(jnp.float32) * (x_scale[at] * factor)))
