"""Micro-batches of a batch, and those of them that hold nothing.

Batches of completions have room for the longest that may come; where they are shorter, the last micro-batches are empty
(`packed_groups`), and are passed over. What must hold: all devices pass over the same ones, or a collective would hang.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.parallel.placement import sum_over_mesh


def micro_batches(batch: Batch, num: int) -> dict[str, Array]:
    """`[num, B, ...]` arrays: micro-batch `i` has rows `i::num`."""
    return {k: x.reshape(-1, num, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}


def num_learned(batch: Batch, num: int, mesh: AnyMesh) -> Array:
    """Something above 0, `[num]`, for each of `num` micro-batches with a target on any device."""
    own = micro_batches({"loss_mask": batch["loss_mask"]}, num)["loss_mask"].sum((1, 2))
    return sum_over_mesh(own, mesh)


def of_filled(compute: Callable[[Batch], Array], batch: Batch, num: int, mesh: AnyMesh) -> Array:
    """`compute` of a device's rows, `[B, ...]`, by `num` micro-batches; zeros for those without a target."""
    parts, learned = micro_batches(batch, num), num_learned(batch, num, mesh)
    shape = jax.eval_shape(compute, {name: part[0] for name, part in parts.items()})

    def blank(part: Batch) -> Array:
        return jnp.zeros(shape.shape, shape.dtype)

    values = jax.lax.map(lambda micro: jax.lax.cond(micro[1] > 0, compute, blank, micro[0]), (parts, learned))
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])
