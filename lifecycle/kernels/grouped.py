"""Grouped matrix products: rows sorted by group, each group's rows times that group's own matrix.

It is the core of a layer of experts (Gale et al. 2022, "MegaBlocks"): no padding to a capacity, and work in proportion
to the existing rows. Rows after the last group are ignored, whatever they contain, also in the gradients, since
exchange buffers are rarely full. The result has the dtype of the operands, and is accumulated in float32; of 8-bit
values it is the sums themselves, in int32 or float32 (`kernels/quantised.py`). A layer's product with its gradients is
made of these in `kernels/grouped_linear.py`.

The implementation is chosen by the platform of the trace (`core/platform.py`):

- TPU: the Pallas kernels `gmm` and `tgmm` of JAX's megablox. `jax.lax.ragged_dot` becomes a kernel there as well, but
  at Mixtral's sizes (16384 rows, 8 x 4096 x 14336, v5p) it uses tiles of 128 rows and 256 columns, so 85 FLOPs for each
  byte read where the chip needs 166 to be busy; it writes a float32 result of 0.9 GB in addition to the bfloat16 one,
  and makes a transposed copy of all weights in the backward pass. megablox reads transposed weights in place, writes
  bfloat16, and takes tiles of 512 x 1024 x 1024: 341 FLOPs a byte.
- CPU: a loop over tiles of rows, each with its group's matrix. `ragged_dot` multiplies all rows by all matrices there:
  99 ms where a plain product of the same rows takes 9 (4096 rows, 8 x 384 x 512).
- elsewhere, and on a TPU for 8-bit values, which megablox does not take: `jax.lax.ragged_dot`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import RaggedDotDimensionNumbers

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.quantised import format_of

CPU_ROWS = 128  # per step of the CPU's loop


def group_ids(group_sizes: Int[Array, " E"], num_rows: int) -> Int[Array, " N"]:
    """The group of each row; `E` after the last group."""
    return (jnp.arange(num_rows)[:, None] >= jnp.cumsum(group_sizes)).sum(axis=1)


def grouped_product(
    x: Shaped[Array, "N D"],
    weights: Shaped[Array, "E rows columns"],
    group_sizes: Int[Array, " E"],
    transposed: bool = False,
    is_filled: bool = True,
) -> Shaped[Array, "N F"]:
    """`x @ weights` group by group; `transposed`: the weights are `[E, F, D]`. Rows after the last group are zero, or
    arbitrary unless `is_filled`."""
    if _implementation(x) == "tpu":
        return tpu_product(x, weights, group_sizes, transposed, is_filled)
    return (cpu_product if _implementation(x) == "cpu" else ragged_product)(x, weights, group_sizes, transposed)


def group_products(
    x: Shaped[Array, "N D"], y: Shaped[Array, "N F"], group_sizes: Int[Array, " E"]
) -> Shaped[Array, "E D F"]:
    """`x[rows of g]' @ y[rows of g]` for each group: the weights' gradient."""
    implementations = {"cpu": cpu_group_products, "tpu": tpu_group_products}
    return implementations.get(_implementation(x), ragged_group_products)(x, y, group_sizes)


def _implementation(x: Array) -> str:
    return "ragged" if platform() == "tpu" and x.dtype.itemsize == 1 else platform()


def _dtypes(x: Array) -> tuple[Any, Any]:
    """The dtypes of a product's sums and of its result."""
    if x.dtype.itemsize == 1:
        return format_of(x.dtype).sums, format_of(x.dtype).sums
    return jnp.float32, x.dtype


# TPU ------------------------------------------------------------------------------------------------------------------


def tpu_product(
    x: Float[Array, "N D"],
    weights: Float[Array, "E rows columns"],
    group_sizes: Int[Array, " E"],
    transposed: bool,
    is_filled: bool = True,
    interpret: bool = False,
) -> Float[Array, "N F"]:
    """Each row times its group's weight, by megablox. `transposed`: weights are `[E, F, D]`; rows after the last group
    are zero, or arbitrary unless `is_filled`; `interpret` runs the kernel's Python on a CPU."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    rows, columns = x.shape[0], weights.shape[1 if transposed else 2]
    tiles = (_row_tile(rows, weights.shape[0]), _tile(x.shape[1]), _tile(columns))
    out = gmm(
        _pad_rows(x, tiles[0]), weights, group_sizes, x.dtype, tiles, transpose_rhs=transposed, interpret=interpret
    )[:rows]
    if not is_filled:
        return out  # the kernel leaves tiles that no group touches unwritten
    return jnp.where((jnp.arange(rows) < group_sizes.sum())[:, None], out, 0)


def tpu_group_products(
    x: Float[Array, "N D"], y: Float[Array, "N F"], group_sizes: Int[Array, " E"], interpret: bool = False
) -> Float[Array, "E D F"]:
    """`x' y` over the rows of each group, by megablox: the gradient of the weights of `tpu_product`."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = (_row_tile(x.shape[0], group_sizes.shape[0]), _tile(x.shape[1]), _tile(y.shape[1]))
    x, y = _pad_rows(x, tiles[0]), _pad_rows(y, tiles[0])
    return tgmm(x.T, y, group_sizes, x.dtype, tiles, interpret=interpret)  # its own transposition undoes this one


def _row_tile(rows: int, groups: int) -> int:
    """Rows per tile, such that no padding is needed if 128 divides `rows`. A group's last tile is half empty on
    average, so small groups use small tiles."""
    return next((tile for tile in (512, 256) if rows >= 2 * tile * groups and rows % tile == 0), 128)


def _tile(size: int) -> int:
    """A tile's width: `size` up to 1024, else the multiple of 128 with the least padded work, where each tile costs as
    much as 64 columns."""
    return size if size <= 1024 else min(range(1024, 127, -128), key=lambda width: -(-size // width) * (width + 64))


def _pad_rows(x: Array, tile: int) -> Array:
    missing = -x.shape[0] % tile
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


# CPU ------------------------------------------------------------------------------------------------------------------


def cpu_product(
    x: Shaped[Array, "N D"], weights: Shaped[Array, "E rows columns"], group_sizes: Int[Array, " E"], transposed: bool
) -> Shaped[Array, "N F"]:
    """Each row times its group's weight, a tile of `CPU_ROWS` rows at a time; zero after the last group."""
    rows, columns = x.shape[0], weights.shape[1 if transposed else 2]
    x, (sums, dtype) = _pad_rows(x, CPU_ROWS), _dtypes(x)

    def step(group: Array, start: Array, mask: Array, out: Array) -> Array:
        tile = jax.lax.dynamic_slice_in_dim(x, start, CPU_ROWS)
        product = jax.lax.dot_general(
            tile, weights[group], (((1,), (1 if transposed else 0,)), ((), ())), preferred_element_type=sums
        )
        before = jax.lax.dynamic_slice_in_dim(out, start, CPU_ROWS)
        return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(mask, product.astype(dtype), before), start, 0)

    return _for_tiles(group_sizes, step, jnp.zeros((x.shape[0], columns), dtype))[:rows]


def cpu_group_products(
    x: Shaped[Array, "N D"], y: Shaped[Array, "N F"], group_sizes: Int[Array, " E"]
) -> Shaped[Array, "E D F"]:
    """`x' y` over the rows of each group, a tile of `CPU_ROWS` rows at a time, accumulated in 32 bits."""
    x, y, (sums, dtype) = _pad_rows(x, CPU_ROWS), _pad_rows(y, CPU_ROWS), _dtypes(x)

    def step(group: Array, start: Array, mask: Array, out: Array) -> Array:
        left = jnp.where(mask, jax.lax.dynamic_slice_in_dim(x, start, CPU_ROWS), 0)
        right = jnp.where(mask, jax.lax.dynamic_slice_in_dim(y, start, CPU_ROWS), 0)
        product = jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())), preferred_element_type=sums)
        return jax.lax.dynamic_update_index_in_dim(out, out[group] + product, group, 0)

    zeros = jnp.zeros((group_sizes.shape[0], x.shape[1], y.shape[1]), sums)
    return _for_tiles(group_sizes, step, zeros).astype(dtype)


def _for_tiles(group_sizes: Array, step, out: Array) -> Array:
    """Folds `step(group, first row, rows of the tile that are the group's [CPU_ROWS, 1], out)` over all tiles with rows
    of a group; a tile with rows of several groups is visited once for each."""
    ends = jnp.cumsum(group_sizes)
    starts = ends - group_sizes
    tiles = jnp.where(group_sizes > 0, (ends - 1) // CPU_ROWS - starts // CPU_ROWS + 1, 0)
    visits = jnp.cumsum(tiles)

    def visit(number: Array, out: Array) -> Array:
        group = jnp.searchsorted(visits, number, side="right")
        start = (starts[group] // CPU_ROWS + number - visits[group] + tiles[group]) * CPU_ROWS
        rows = start + jnp.arange(CPU_ROWS)
        return step(group, start, ((rows >= starts[group]) & (rows < ends[group]))[:, None], out)

    return jax.lax.fori_loop(0, visits[-1], visit, out)


# Elsewhere ------------------------------------------------------------------------------------------------------------


def ragged_product(
    x: Shaped[Array, "N D"], weights: Shaped[Array, "E rows columns"], group_sizes: Int[Array, " E"], transposed: bool
) -> Shaped[Array, "N F"]:
    """Each row times its group's weight, by XLA's own grouped product."""
    weights = weights.swapaxes(1, 2) if transposed else weights
    sums, dtype = _dtypes(x)
    return jax.lax.ragged_dot(x, weights, group_sizes, preferred_element_type=sums).astype(dtype)


def ragged_group_products(
    x: Shaped[Array, "N D"], y: Shaped[Array, "N F"], group_sizes: Int[Array, " E"]
) -> Shaped[Array, "E D F"]:
    """`x' y` over the rows of each group, by XLA's own grouped product."""
    contract_rows = RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
    sums, dtype = _dtypes(x)
    return jax.lax.ragged_dot_general(x, y, group_sizes, contract_rows, preferred_element_type=sums).astype(dtype)
