"""A weight with low-rank adapters, one of a bank for each row of a batch: `x W + (x A) B` (Hu et al. 2021, "LoRA").

All rows are multiplied by each adapter of the bank, and of the products with its `A` a row keeps those of its own. So
the bank is read once, whatever the rows ask for; a gather as in Punica (Chen et al. 2023) reads an adapter for each
row, in the same CPU time for 8 rows and 4 adapters, and on accelerators copies it first. Rows that all have one
adapter, a prompt's chunk, are multiplied by that one alone.

What must hold: a row without an adapter gets `x W + 0`. A row with one depends on no other, nor on its place in the
bank: what is not its own is zero before the second product, adapters are finite, and each is a product of its own. (All
in one, side by side, 22 of 1,000 shapes gave other bits in another place on a CPU.)
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.weight_form import WeightForm

NO_ADAPTER = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptedWeight(WeightForm):
    """A weight `[D, F]` in any form, the bank's adapters of it, and which of them each row has."""

    weight: Any
    a: Float[Array, "*stack adapters rank D"]
    b: Float[Array, "*stack adapters rank F"]
    ids: Int[Array, "*stack rows"]  # `NO_ADAPTER`: none. Each stands for as many tokens, one after the other


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRankWeight(WeightForm):
    """A frozen weight `[D, F]` in any form, and the matrices that are trained beside it: `W + scale a^T b`, each column
    of the magnitude's length if there is one. Gathered, `b` has the scale, and the magnitude is divided by the
    column's length, in float32: products are multiplied by it."""

    weight: Any
    a: Float[Array, "*stack rank D"]
    b: Float[Array, "*stack rank F"]
    magnitude: Float[Array, "*stack F"] | None
    scale: float = field(metadata={"static": True})


def adapter_product(x: Float[Array, "*rows D"], weight: AdaptedWeight) -> Float[Array, "*rows F"]:
    """What each row's adapter adds to the product with the weight, in `x`'s dtype."""
    rows, a, b, ids = x.reshape(-1, x.shape[-1]), weight.a, weight.b, weight.ids
    if ids.size == 1:
        a, b = (jax.lax.dynamic_index_in_dim(each, jnp.maximum(ids[0], 0), 0) for each in (a, b))
        ids = jnp.minimum(ids, 0)
    num, ids = a.shape[0], jnp.repeat(ids, rows.shape[0] // ids.size)
    inner = _products(jnp.broadcast_to(rows, (num, *rows.shape)), a, 2)
    own = jnp.where((ids == jnp.arange(num)[:, None])[..., None], inner, 0)
    return _products(own, b, 1).sum(0).reshape(*x.shape[:-1], -1)


def _products(x: Float[Array, "adapters N _"], matrices: Float[Array, "adapters _ _"], dim: int) -> Array:
    """A product for each adapter, summing over its matrix's dimension `dim`."""
    return jax.lax.dot_general(x, matrices, (((2,), (dim,)), ((0,), (0,))), preferred_element_type=x.dtype)
