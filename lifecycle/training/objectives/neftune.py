"""NEFTune: uniform noise on the embeddings of fine-tuning rows (Jain et al. 2023, "NEFTune: Noisy Embeddings Improve
Instruction Finetuning", algorithm 1).

The noise of a token is in [-1, 1] times `alpha / sqrt(L D)`, where `L` is the length of its segment; transformers takes
the length of a padded batch. What must hold: it depends on the step, on the ids of the token's segment and on its
position there alone, so packing, micro-batches and meshes decide nothing, and a resumed run has the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Batch, Float, Int
from lifecycle.parallel.collectives import axis_index, axis_size, psum
from lifecycle.parallel.columns import declare

STEP = "step"  # a column: the number of finished steps, which only a training step adds
declare("row", STEP)


def noise_of(alpha: float, batch: Batch) -> Callable[[Float[Array, "B t D"]], Float[Array, "B t D"]]:
    """A function that adds the noise of this device's rows to their embeddings, whose positions are sharded over
    `norm_seq`."""

    def noisy(x: Float[Array, "B t D"]) -> Float[Array, "B t D"]:
        size = x.shape[1]
        begin = axis_index("norm_seq") * size
        own, positions, lengths, is_token = (
            jax.lax.dynamic_slice_in_dim(column, begin, size, 1)
            for column in (segment_hashes(batch), batch["positions"], segment_lengths(batch), batch["segment_ids"] > 0)
        )
        step = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), batch[STEP][0])

        def drawn(segment: Array, position: Array) -> Array:
            key = jax.random.fold_in(jax.random.fold_in(step, segment), position)
            return jax.random.uniform(key, x.shape[2:], jnp.float32, -1, 1)

        scale = jnp.where(is_token, alpha / jnp.sqrt(jnp.maximum(lengths, 1) * x.shape[2]), 0)
        return x + (jax.vmap(jax.vmap(drawn))(own, positions) * scale[..., None]).astype(x.dtype)

    return noisy


def segment_hashes(batch: Batch) -> Int[Array, "B T"]:
    """At each position a hash of its segment's ids and their positions: murmur's mix of each, added up."""
    tokens, positions = (batch[name].astype(jnp.uint32) for name in ("tokens", "positions"))
    mixed = (tokens * jnp.uint32(0x9E3779B1)) ^ (positions * jnp.uint32(0x85EBCA77))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return _summed(mixed ^ (mixed >> 16), batch)


def segment_lengths(batch: Batch) -> Int[Array, "B T"]:
    """At each position the number of tokens of its segment."""
    return _summed(jnp.ones_like(batch["tokens"]), batch)


def _summed(values: Array, batch: Batch) -> Array:
    """At each position the sum over its segment; integers, so the order does not count."""
    segments = batch["segment_ids"]
    num = segments.shape[1] * axis_size("seq") + 1
    totals = jax.vmap(lambda v, where: jax.ops.segment_sum(v, where, num))(values, segments)
    return jnp.take_along_axis(psum(totals, "seq"), segments, axis=1)
