"""Weights as kernels for CPUs multiply by them, in the order in which these read them (`kernels/strips.py`).

A strip is 16 columns: of float32 `values[strip, row, column]`. Of integers, four rows of each column lie together:
`values[strip, group, four, column, row]`, with 128 added. Values of 4 bits are 16 times as large, and share a byte with
those of the next four: `values[strip, group, two fours, column, row]`, the first in the low half. The products are
those of plain arrays, `GroupScaled` and `QuantisedTable`, but for the order in which they are added. A row's bits do
not depend on the number of rows. They need AVX-512, of integers with VNNI; otherwise XLA
multiplies: floats of several rows in up to twice the time, integers several times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.cpu_kernels import target_of
from lifecycle.kernels.group_scaled import SCALE, GroupScaled
from lifecycle.kernels.quantised import GROUP, QuantisedTable, scaled_rows
from lifecycle.kernels.weight_form import WeightForm

LANES, FOUR = 16, 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedWeight(WeightForm):
    """A weight `[D, F]`, or a table `[V, D]` whose rows are the columns here."""

    values: Shaped[Array, "strips ..."]  # float32; uint8: a group has 8 registers of 8 bits, or 4 of 4
    scale: Shaped[Array, "strips groups 16"] | None  # bfloat16; None: of float32

    def rows(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
        """A table's rows, in float32."""
        strips, column = ids // LANES, ids % LANES
        if self.scale is None:
            return self.values[strips, :, column]
        held = self.values[strips, :, :, column]
        is_half = self.values.shape[2] < GROUP // FOUR
        fours = jnp.stack([held << 4, held & 0xF0], -2) if is_half else held
        values = fours.reshape(*ids.shape, -1).astype(jnp.int16) - 128
        return scaled_rows(values, self.scale[strips, :, column])

    @property
    def shape(self) -> tuple[int, int]:
        """That of a table."""
        strips, size = self.values.shape[:2]
        return strips * LANES, size if self.scale is None else size * GROUP


def packed_floats(weight: Float[Array, "D F"], is_table: bool) -> PackedWeight | Float[Array, "D F"]:
    """A weight, or a table `[V, D]`, as the kernel of floats takes it; sizes that are no multiples, unchanged."""
    columns = weight if is_table else weight.T
    num, depth = columns.shape
    if num % LANES or depth % 2:
        return weight
    return PackedWeight(columns.reshape(num // LANES, LANES, depth).swapaxes(1, 2), None)


def packed(weight: Any) -> Any:
    """A weight or table in groups as the kernel takes it; others, and sizes that are no multiples, unchanged."""
    if isinstance(weight, GroupScaled) and weight.values.ndim == 2:
        columns, scale = weight.values.T, weight.scale.T
    elif isinstance(weight, QuantisedTable) and weight.is_in_groups:
        columns, scale = weight.values, weight.scale
    else:
        return weight
    (num, depth), groups = columns.shape, scale.shape[1]
    if num % LANES or depth != groups * GROUP:
        return weight
    is_half = columns.dtype == jnp.int4
    values = columns.astype(jnp.int16) * (16 if is_half else 1) + 128
    fours = values.astype(jnp.uint8).reshape(num // LANES, LANES, groups, GROUP // FOUR, FOUR).transpose(0, 2, 3, 1, 4)
    if is_half:
        fours = fours[:, :, 0::2] >> 4 | fours[:, :, 1::2]
    by_strip = scale.reshape(num // LANES, LANES, groups).swapaxes(1, 2)
    return PackedWeight(fours, by_strip / SCALE(16 if is_half else 1))


def packed_products(x: Float[Array, "*rows D"], weights: Sequence[PackedWeight]) -> tuple[Float[Array, "*rows _"], ...]:
    """`x` times each weight, in `x`'s dtype; with integers its rows are rounded to 8 bits once. All weights are of
    integers, or all of floats."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    num, depth = rows.shape
    outs = [jax.ShapeDtypeStruct((num, weight.shape[0]), jnp.float32) for weight in weights]
    if all(weight.scale is None for weight in weights):
        name, workspace = target_of("float_strips"), 0
    else:
        name, workspace = target_of("vnni"), num * (depth + 8 * depth // GROUP)  # 8 bits, their scales and sums
    arrays = jax.tree.leaves(list(weights))
    *found, _ = jax.ffi.ffi_call(name, (*outs, jax.ShapeDtypeStruct((max(workspace, 1),), jnp.int8)))(rows, *arrays)
    return tuple(out.reshape(*x.shape[:-1], -1).astype(x.dtype) for out in found)
