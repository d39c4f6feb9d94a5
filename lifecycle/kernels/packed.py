"""Weights in groups as CPUs with VNNI multiply by them: bytes in the order in which `kernels/vnni.py` reads them.

A strip is 16 columns, and of it four rows of each column lie together: `values[strip, group, four, column, row]`, with
128 added. Values of 4 bits are 16 times as large, and share a byte with those of the next four: `values[strip, group,
two fours, column, row]`, the first in the low half. The products are those of `GroupScaled` and `QuantisedTable`, but
for the order in which groups are added. They need the extra `cpu-int8`; without it, and on other CPUs, XLA multiplies,
several times slower.
"""

import functools
import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.group_scaled import SCALE, GroupScaled
from lifecycle.kernels.quantised import GROUP, QuantisedTable, scaled_rows

LANES, FOUR = 16, 4
TARGET = "lifecycle_integer_products"
_REGISTERING = threading.Lock()  # of two engines that start at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedWeight:
    """A weight `[D, F]`, or a table `[V, D]` whose rows are the columns here."""

    values: Shaped[Array, "strips groups bits 16 4"]  # uint8; a group has 8 registers of 8 bits, or 4 of 4
    scale: Shaped[Array, "strips groups 16"]  # bfloat16

    def __getitem__(self, key: Any) -> "PackedWeight":
        """Itself for `[...]`, as a layer reads a parameter."""
        assert key is ...
        return self

    def rows(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
        """A table's rows, in float32."""
        strips, column = ids // LANES, ids % LANES
        held = self.values[strips, :, :, column]
        is_half = self.values.shape[2] < GROUP // FOUR
        fours = jnp.stack([held << 4, held & 0xF0], -2) if is_half else held
        values = fours.reshape(*ids.shape, -1).astype(jnp.int16) - 128
        return scaled_rows(values, self.scale[strips, :, column])

    @property
    def shape(self) -> tuple[int, int]:
        """That of a table."""
        strips, groups, _ = self.scale.shape
        return strips * LANES, groups * GROUP


def has_kernel() -> bool:
    """Whether this process's CPU multiplies packed weights; registers the kernel if so."""
    with _REGISTERING:
        return _is_registered()


@functools.cache
def _is_registered() -> bool:
    if importlib.util.find_spec("llvmlite") is None:
        return False
    from lifecycle.kernels import vnni

    if not vnni.has_vnni():
        return False
    jax.ffi.register_ffi_target(TARGET, vnni.handler(), platform="cpu")
    return True


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
    """`x` times each weight, in `x`'s dtype; its rows are rounded to 8 bits once."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    num, depth = rows.shape
    outs = [jax.ShapeDtypeStruct((num, weight.shape[0]), jnp.float32) for weight in weights]
    workspace = jax.ShapeDtypeStruct((num * (depth + 8 * depth // GROUP),), jnp.int8)  # 8 bits, their scales and sums
    arrays = [array for weight in weights for array in (weight.values, weight.scale)]
    *found, _ = jax.ffi.ffi_call(TARGET, (*outs, workspace))(rows, *arrays)
    return tuple(out.reshape(*x.shape[:-1], -1).astype(x.dtype) for out in found)
