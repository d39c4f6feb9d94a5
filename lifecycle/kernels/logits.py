"""Logits of rows, and the sums of their exponentials, which a softmax divides by."""

from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.group_scaled import group_table_product
from lifecycle.kernels.packed import PackedWeight, packed_products
from lifecycle.kernels.quantised import QuantisedTable, table_product
from lifecycle.kernels.seldom import seldom
from lifecycle.parallel.collectives import pmax

# A row's exponentials are shifted by the largest of its first logits plus this many nats: their sum is at least
# exp(-60), and below exp(60) unless another logit is larger by about 120 nats.
NUM_FIRST, MARGIN = 128, 60.0


type Head = Float[Array, "V D"] | QuantisedTable | PackedWeight


def project(
    hidden: Float[Array, "*rows D"],
    head: Float[Array, "V D"] | QuantisedTable | PackedWeight,
    soft_cap: float | None = None,
) -> Float[Array, "*rows V"]:
    """Logits in float32. `head` is contracted in its own layout: `hidden @ head.T` is 8 times slower for one row on a
    CPU. In inference it may be in 8 bits."""
    if isinstance(head, QuantisedTable):
        product = group_table_product if head.is_in_groups else table_product
        return soft_capped(product(hidden, head), soft_cap)
    if isinstance(head, PackedWeight):
        return soft_capped(packed_products(hidden.astype(jnp.float32), (head,))[0], soft_cap)
    dims = (((hidden.ndim - 1,), (1,)), ((), ()))
    return soft_capped(jax.lax.dot_general(hidden, head, dims, preferred_element_type=jnp.float32), soft_cap)


def in_dtype(head: Head, dtype: Any) -> Head:
    """The head for a product with rows of a dtype; one in 8 bits is for all."""
    return head if isinstance(head, QuantisedTable | PackedWeight) else head.astype(dtype)


def rows_of(table: Head, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
    """An embedding table's rows, in its own dtype, or in float32 if it is in 8 bits."""
    return table.rows(ids) if isinstance(table, QuantisedTable | PackedWeight) else table[ids]


def soft_capped(logits: Float[Array, "*rows V"], soft_cap: float | None) -> Float[Array, "*rows V"]:
    """Logits bounded by `soft_cap` in both directions, if given (Gemma 2, section 2)."""
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def exponential_sums(
    rows: Float[Array, "N D"], head: Float[Array, "V D"], logits: Float[Array, "N V"], soft_cap: float | None
) -> tuple[Float[Array, "N 1"], Float[Array, "N 1"]]:
    """A shift for each row's logits on this device, and the sum of the exponentials after it.

    The shift is the largest logit, which is known when all are there. On TPUs it is known before: the largest of the
    first few, plus `MARGIN`, so that the product that makes the logits sums their exponentials too; another pass over
    them takes a fifth of that product's time. Where a sum is too large after all, the shifts are the largest logits.
    """
    if platform() != "tpu":
        return _sums_after(logits.max(-1, keepdims=True), logits)
    first = project(rows, head[:NUM_FIRST], soft_cap).max(-1, keepdims=True)
    shift, total = _sums_after(pmax(first, "vocab") + MARGIN, logits)

    def largest(number: Array, _: Any) -> tuple[Array, Array]:
        own, _ = jax.lax.optimization_barrier((logits, number))  # in the loop: the compiler would do it before
        return _sums_after(own.max(-1, keepdims=True), own)

    is_over = ~(total < jnp.exp(MARGIN)).all()  # true for NaN
    return seldom(is_over.astype(jnp.int32), largest, (shift, total))


def _sums_after(shift: Array, logits: Array) -> tuple[Array, Array]:
    return shift, jnp.exp(logits - shift).sum(-1, keepdims=True)
