"""NF4: frozen weights in 4 bits (Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3).

A value is one of 16, quantiles of a normal distribution with an exact zero, times the largest magnitude of its block:
64 values of a column, as in `bitsandbytes` a linear layer's inputs. These scales are held in 8 bits again (double
quantisation): of 256 neighbouring columns' scales, their mean in float32 and what each differs from it, on a dynamic
map of 256 values (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2.1) times the largest
difference. In all 4.13 bits a weight.

`bitsandbytes` takes the scales in the order of the flattened matrix and one mean for all of it. Here nothing depends on
more than 64 rows and 256 columns, so a shard of whole blocks is rounded as the matrix is: values depend on no mesh.
"""

from dataclasses import dataclass
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Shaped

BLOCK, SCALES = 64, 256  # values of a block; scales of a block of scales
# From the paper's appendix E: the quantiles, divided by the largest.
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nf4Weight:
    """A weight `[D, F]`, or a stack of them, in NF4."""

    codes: Shaped[Array, "*stack pairs F"]  # uint8: of a block's row i in the low bits, of row i + 32 in the high ones
    scales: Shaped[Array, "*stack blocks F"]  # uint8: numbers of the dynamic map
    spans: Float[Array, "*stack blocks groups"]  # the largest difference from the mean, of each group of columns
    means: Float[Array, "*stack blocks groups"]


def dynamic_map() -> np.ndarray:
    """The 256 values of the 8-bit map, ascending: of each power of ten from 1e-6 to 1, twice as many as of the one
    before, of both signs; zero, and one."""
    values = [0.0, 1.0]
    for power in range(7):
        ends = np.linspace(0.1, 1, 2**power + 1)
        middles = 10.0 ** (power - 6) * (ends[:-1] + ends[1:]) / 2
        values += [*middles, *-middles]
    return np.sort(np.array(values)).astype(np.float32)


def columns_per_group(columns: int) -> int:
    """How many neighbouring columns' scales are a block: 256, or the largest power of two that divides them all."""
    return gcd(columns, SCALES)


def quantised(weight: Float[Array, "*stack D F"]) -> Nf4Weight:
    """A weight in NF4; 64 divides its rows."""
    *stack, rows, columns = weight.shape
    blocks = weight.astype(jnp.float32).reshape(*stack, rows // BLOCK, BLOCK, columns)
    most = jnp.abs(blocks).max(-2)  # [*stack, blocks, F]
    codes = _nearest(blocks * _reciprocal(most)[..., None, :], np.asarray(VALUES, np.float32))
    low, high = jnp.split(codes, 2, axis=-2)
    packed = (low | high << 4).reshape(*stack, rows // 2, columns)
    size = columns_per_group(columns)
    groups = most.reshape(*most.shape[:-1], columns // size, size)
    means = _sum(groups / size)
    apart = groups - means[..., None]
    spans = jnp.abs(apart).max(-1)
    scales = _nearest(apart * _reciprocal(spans)[..., None], dynamic_map()).reshape(most.shape)
    return Nf4Weight(packed, scales, spans, means)


def _nearest(x: Float[Array, "*dims"], values: np.ndarray) -> Shaped[Array, "*dims"]:
    """The number of the nearest value, of two the lower one."""
    return jnp.searchsorted(jnp.asarray((values[1:] + values[:-1]) / 2), x, method="compare_all").astype(jnp.uint8)


def _reciprocal(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Of positive numbers; 0 of those that have none in float32."""
    is_normal = x >= jnp.finfo(jnp.float32).tiny
    return jnp.where(is_normal, 1 / jnp.where(is_normal, x, 1), 0)


def _sum(x: Float[Array, "*dims size"]) -> Float[Array, "*dims"]:
    """The sum over the last dimension, a power of two, halves first: in the same order on any device."""
    while x.shape[-1] > 1:
        x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
    return x[..., 0]


def dense(weight: Nf4Weight, shard: Array | int = 0, num_shards: int = 1) -> Float[Array, "*stack D F"]:
    """The weight in float32. `shard`: which of `num_shards` shards of the columns it is; the blocks of scales are those
    of all columns."""
    *stack, pairs, columns = weight.codes.shape
    codes = weight.codes.reshape(*stack, pairs // (BLOCK // 2), BLOCK // 2, columns)
    values = jnp.concatenate([_value(codes & 15), _value(codes >> 4)], axis=-2)
    size = columns_per_group(columns * num_shards)

    def of_columns(groups: Array) -> Array:
        every = jnp.repeat(groups, size, axis=-1)
        return every if num_shards == 1 else jax.lax.dynamic_slice_in_dim(every, shard * columns, columns, -1)

    scales = jnp.asarray(dynamic_map())[weight.scales] * of_columns(weight.spans) + of_columns(weight.means)
    return (values * scales[..., None, :]).reshape(*stack, 2 * pairs, columns)


def _value(codes: Shaped[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The values of 4-bit codes, by a tree of selections: a table would be a gather for each weight."""
    found: list[Array | float] = list(VALUES)
    for bit in range(4):
        is_set = (codes >> bit & 1) == 1
        found = [jnp.where(is_set, high, low) for low, high in zip(found[::2], found[1::2], strict=True)]
    return jnp.asarray(found[0], jnp.float32)
