"""Int8 weights as CPUs with VNNI multiply by them: bytes in the order in which `kernels/vnni.py` reads them.

A strip is 16 columns, and of it four rows of each column lie together: `values[strip, four, column, row]`, with 128
added. The products are those of `QuantisedWeight` and `QuantisedTable`, bit for bit. They need the extra `cpu-int8`;
without it, and on other CPUs, XLA multiplies, several times slower.
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
from lifecycle.kernels.quantised import QuantisedTable, QuantisedWeight

LANES, FOUR = 16, 4
TARGET = "lifecycle_int8_products"
_REGISTERING = threading.Lock()  # of two engines that start at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedWeight:
    """A weight `[D, F]`, or a table `[V, D]` whose rows are the columns here."""

    values: Shaped[Array, "S Q 16 4"]
    scale: Float[Array, " F"]

    def __getitem__(self, key: Any) -> "PackedWeight":
        """Itself for `[...]`, as a layer reads a parameter."""
        assert key is ...
        return self

    def rows(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
        """A table's rows, in float32."""
        strips, column = ids // LANES, ids % LANES
        values = self.values[strips, :, column].reshape(*ids.shape, -1).astype(jnp.float32) - 128
        return values * self.scale[ids][..., None]

    @property
    def shape(self) -> tuple[int, int]:
        """That of a table."""
        return self.scale.shape[0], self.values.shape[1] * FOUR


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
    """A weight or table in 8 bits as the kernel takes it; others, and sizes not a multiple of 16, unchanged."""
    if isinstance(weight, QuantisedWeight) and weight.values.ndim == 2 and weight.values.dtype == jnp.int8:
        columns, scale = weight.values.T, weight.scale[0]
    elif isinstance(weight, QuantisedTable):
        columns, scale = weight.values, weight.scale[:, 0]
    else:
        return weight
    num, depth = columns.shape
    if num % LANES or depth % LANES:
        return weight
    fours = (columns ^ jnp.int8(-128)).view(jnp.uint8).reshape(num // LANES, LANES, depth // FOUR, FOUR)
    return PackedWeight(fours.swapaxes(1, 2), scale)


def packed_products(x: Float[Array, "*rows D"], weights: Sequence[PackedWeight]) -> tuple[Float[Array, "*rows _"], ...]:
    """`x` times each weight, in `x`'s dtype; its rows are rounded to 8 bits once."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    num, depth = rows.shape
    outs = [jax.ShapeDtypeStruct((num, weight.scale.size), jnp.float32) for weight in weights]
    workspace = jax.ShapeDtypeStruct((num * (depth + 8),), jnp.int8)  # the rows in 8 bits, their scales and sums
    arrays = [array for weight in weights for array in (weight.values, weight.scale)]
    *found, _ = jax.ffi.ffi_call(TARGET, (*outs, workspace))(rows, *arrays)
    return tuple(out.reshape(*x.shape[:-1], -1).astype(x.dtype) for out in found)
