"""Weights of inference in groups: integers of 4 or 8 bits, and a scale for each 32 rows of a column.

A group's scale is bfloat16, so a value has 4.5 or 8.5 bits, as in llama.cpp's q4_0 and q8_0; it is rounded before the
values are, which so make up for it. On CPUs the rows that a weight multiplies are rounded to 8 bits with a scale for
each 32 values too: one for a whole row cost a model of 135M 0.9 % bits per byte (docs/log.md). Elsewhere a weight is
expanded to the rows' dtype where it is used, which XLA fuses into the product.

The CPU's product is what `kernels/vnni.py` computes: sums of exact integers in each group, added in float32.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Shaped
from lifecycle.kernels.quantised import GROUP, QuantisedTable, quantise
from lifecycle.kernels.weight_form import WeightForm

SCALE = jnp.bfloat16
LOWEST, HIGHEST = {4: -8, 8: -127}, {4: 7, 8: 127}
# What a group's largest magnitude becomes, before it is cut to the range: that with the least squared error is kept. Of
# normal values the first six leave an error of 0.082, 7 alone of 0.097, -8 alone (q4_0) of 0.086. The others are for
# weights that are on such a grid already: they keep their values.
TRIED = {4: (-8.0, -7.0, -7.5, -8.5, -9.0, -9.5, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0), 8: (-127.0,)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupScaled(WeightForm):
    """A weight `[D, F]`, or a stack of them: integers times a scale per group of rows and column."""

    values: Shaped[Array, "*stack D F"]  # int4 or int8
    scale: Shaped[Array, "*stack groups F"]  # bfloat16

    def dense(self, dtype: Any) -> Float[Array, "*stack D F"]:
        """The weight as a plain array."""
        return _times(self.values.astype(dtype), self.scale.astype(dtype))


def group_size(depth: int) -> int:
    """Values of a group: 32, or of a depth that is no multiple of it the largest number that divides both."""
    return math.gcd(depth, GROUP)


def group_scaled(weight: Float[Array, "*stack D F"], bits: int) -> GroupScaled:
    """A weight's nearest form in groups; a group whose values are not finite has a scale that is not."""
    *stack, depth, columns = weight.shape
    size = group_size(depth)
    grouped = weight.astype(jnp.float32).reshape(*stack, depth // size, size, columns)
    scale = group_scales(grouped, bits)
    values = nearest(grouped, scale, bits).reshape(weight.shape)
    return GroupScaled(values.astype(jnp.int4 if bits == 4 else jnp.int8), scale[..., 0, :].astype(SCALE))


def group_scaled_table(table: Float[Array, "V D"]) -> QuantisedTable:
    """A table's nearest form of 8 bits, in groups of each row."""
    held = group_scaled(table.T, 8)
    return QuantisedTable(held.values.T, held.scale.T)


def group_scales(
    grouped: Float[Array, "*groups size F"], bits: int, importance: Array | float = 1.0
) -> Float[Array, "*groups 1 F"]:
    """The scale of each group's column with the least squared error of those tried, as bfloat16 has it. `importance`:
    of each row's squares."""
    place = jnp.abs(grouped).argmax(-2, keepdims=True)
    largest = jnp.take_along_axis(grouped, place, -2)

    def tried(target: Array | float) -> tuple[Array, Array]:
        scale = (largest / target).astype(SCALE).astype(jnp.float32)
        scale = jnp.where(scale == 0, 1.0, scale)
        error = grouped - nearest(grouped, scale, bits) * scale
        return scale, (importance * jnp.square(error)).sum(-2, keepdims=True)

    def better(known: tuple[Array, Array], target: Array) -> tuple[tuple[Array, Array], None]:
        (best, least), (scale, error) = known, tried(target)
        return (jnp.where(error < least, scale, best), jnp.minimum(error, least)), None

    first, *others = TRIED[bits]
    if not others:
        return tried(first)[0]
    # a loop: unrolled it takes 2.1 times as long to compile, and 3.1 times as long to run on a CPU
    (best, _), _ = jax.lax.scan(better, tried(first), jnp.asarray(others))
    return best


def nearest(grouped: Float[Array, "*groups size F"], scale: Float[Array, "*groups 1 F"], bits: int) -> Array:
    """The integers nearest to the values, in float32."""
    return jnp.clip(jnp.round(grouped / scale), LOWEST[bits], HIGHEST[bits])


def group_product(x: Float[Array, "*rows D"], weight: GroupScaled) -> Float[Array, "*rows F"]:
    """`x @ weight`, in `x`'s dtype."""
    return jax.lax.dot_general(rounded_rows(x), weight.dense(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))


def group_table_product(x: Float[Array, "*rows D"], table: QuantisedTable) -> Float[Array, "*rows V"]:
    """Logits in float32: `x` times the rows of a table in groups."""
    rows = rounded_rows(x.astype(jnp.float32))
    return jax.lax.dot_general(rows, table.dense(), (((x.ndim - 1,), (1,)), ((), ())))


def rounded_rows(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """The rows as a product in groups takes them: on CPUs rounded to 8 bits, in groups."""
    if platform() != "cpu":
        return x
    size = group_size(x.shape[-1])
    values, scale = quantise(x.reshape(*x.shape[:-1], -1, size), (x.ndim,), jnp.int8)
    return (values * scale).reshape(x.shape).astype(x.dtype)


def _times(values: Shaped[Array, "*stack D F"], scale: Shaped[Array, "*stack groups F"]) -> Array:
    *stack, groups, columns = scale.shape
    return (values.reshape(*stack, groups, -1, columns) * scale[..., None, :]).reshape(values.shape)
