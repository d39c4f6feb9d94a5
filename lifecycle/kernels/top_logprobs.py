"""The likeliest ids at each position with their log-probabilities, in blocks: logits `[B, T, V]` never exist.

In a manual `jax.shard_map` as `kernels/token_statistics.py`; each device finds the likeliest of its part of the
vocabulary, and all of these. What must hold: of ids that tie the lowest come first, however the vocabulary is cut.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.kernels.logits import project
from lifecycle.kernels.row_blocks import asked_first, of_rows, over_blocks, row_blocks
from lifecycle.kernels.vocabulary import BLOCK, chunks_of, gathered_table
from lifecycle.parallel.collectives import all_gather, pmax, psum

MOST_LOGITS = 2**24  # of a block: 67 MB in float32; a sort has a few such arrays


class Among(NamedTuple):
    """Of which distribution: logits divided by `temperature`; with `num_ids`, over the first ids alone."""

    temperature: float = 1.0
    num_ids: int | None = None


def top_logprobs(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    num: int,
    wanted: Bool[Array, "B T"],
    among: Among,
    soft_cap: float | None = None,
    chunks: int = 1,
) -> tuple[Int[Array, "B T num"], Float[Array, "B T num"]]:
    """The `num` likeliest ids, the likeliest first, and their log-probabilities in nats; zeros where nobody `wanted`
    any. Not differentiable. There must be so many ids; `chunks` of the vocabulary."""
    hidden = jax.lax.stop_gradient(all_gather(hidden, "norm_seq", 1))
    asked, most = asked_first(wanted), MOST_LOGITS // (table.shape[0] // chunks)
    rows = row_blocks(hidden, min(BLOCK[hidden.dtype.name] * chunks, max(8, most // 8 * 8)), asked)

    def one_chunk(running: _Running, chunk: tuple[Array, Array]) -> tuple[_Running, None]:
        head, first = gathered_table(chunk[0], rows.dtype), chunk[1]

        def one_block(_: None, block: tuple[_Running, Array]) -> tuple[None, _Running]:
            running, rows = block
            ids = first + jnp.arange(len(head))
            return None, running.with_logits(project(rows, head, soft_cap) / among.temperature, ids, among.num_ids)

        return over_blocks(one_block, None, (running, rows), asked)[1], None

    running, _ = jax.lax.scan(one_chunk, _Running.of(rows, num), chunks_of(jax.lax.stop_gradient(table), chunks))
    ids, logprobs = running.over_devices(num)
    return of_rows(ids, wanted.shape, asked), of_rows(logprobs, wanted.shape, asked)


class _Running(NamedTuple):
    """So far, `[blocks, rows, ...]`: the sum of exponentials after the shift `top`; the largest logits and their
    ids."""

    top: Array
    norm: Array
    logits: Array
    ids: Array

    @classmethod
    def of(cls, rows: Array, num: int) -> "_Running":
        zeros = jnp.zeros(rows.shape[:2], jnp.float32)
        many = (*rows.shape[:2], num)
        return cls(zeros - jnp.inf, zeros, jnp.full(many, -jnp.inf), jnp.full(many, -1, jnp.int32))

    def with_logits(self, logits: Array, ids: Array, num_ids: int | None) -> "_Running":
        if num_ids is not None:
            logits = jnp.where(ids < num_ids, logits, -jnp.inf)
        top = jnp.maximum(self.top, logits.max(-1))
        shift = jnp.where(jnp.isfinite(top), top, 0.0)  # no id of this part may count
        norm = self.norm * jnp.exp(self.top - shift) + jnp.exp(logits - shift[..., None]).sum(-1)
        largest, every = _largest(
            jnp.concatenate([self.logits, logits], -1),
            jnp.concatenate([self.ids, jnp.broadcast_to(ids, logits.shape)], -1),
            self.logits.shape[-1],
        )
        return _Running(top, norm, largest, every)

    def over_devices(self, num: int) -> tuple[Array, Array]:
        """The likeliest ids and their log-probabilities."""
        top = pmax(self.top, "vocab")
        log_norm = top + jnp.log(psum(self.norm * jnp.exp(self.top - top), "vocab"))
        every, of_every = (all_gather(own, "vocab", own.ndim - 1) for own in (self.logits, self.ids))
        logits, ids = _largest(every, of_every, num)
        return ids, logits - log_norm[..., None]


def _largest(logits: Array, ids: Array, num: int) -> tuple[Array, Array]:
    values, places = jax.lax.top_k(logits, num)
    return values, jnp.take_along_axis(ids, places, axis=-1)
