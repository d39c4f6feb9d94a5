"""Two passes over the output projection in chunks of the vocabulary and blocks of positions: sums, then gradients.

The first pass keeps a few sums of each position's logits, the second makes the logits again and with them the gradient
of anything whose derivative in a logit `l` of probability `p` is `p * (a + c * l) + b * [l is the target's]`, `a`, `b`
and `c` being numbers of the position: log-probabilities, entropies, the z-loss. What must hold: no more logits exist at
once than those of a block and a chunk.

In a manual `jax.shard_map` the head's rows are sharded over `vocab`, and its columns over `embed`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.logits import Head, project
from lifecycle.kernels.row_blocks import Asked, over_blocks
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, pmax, psum, reduce_scatter

# Positions in a block. 256 x 4096 logits, 4 MB in float32, stay in a CPU's last-level cache; 1,024 are 10 % slower. An
# accelerator's matrix unit wants many rows, and each block reads and writes the gradient's accumulator once; with 4096
# instead, the 8B model's step on a v5p takes 18 M more cycles, of 3,924 M, and 0.85 GB more.
BLOCK = {"float32": 256, "bfloat16": 2048}


def gathered_table(table: Array, dtype: jnp.dtype) -> Shaped[Array, "V D"]:
    """The head in the compute dtype, gathered over `d_model`. Shards are concatenated along their first dimension:
    along the second, the TPU compiler would copy the whole array."""
    return all_gather(table.astype(dtype).T, "embed", 0).T


class LogitMoments(NamedTuple):
    """What else the first pass keeps of each position if it is asked to, `[blocks, rows]`."""

    mean: Array  # the mean logit under the softmax
    log_squares: Array  # the log of the sum of the probabilities' squares
    top: Array  # the largest logit
    plain_mean: Array  # the mean logit


class LogitSums(NamedTuple):
    """What the first pass keeps of each position, `[blocks, rows]`, over the whole vocabulary."""

    log_norm: Array  # the log of the softmax's normaliser
    chosen: Array  # the target's logit
    moments: LogitMoments | None

    @property
    def logprobs(self) -> Array:
        """The target's log-probability."""
        return self.chosen - self.log_norm


class Coefficients(NamedTuple):
    """The numbers `a`, `b` and `c` of each position, in the same layout; None: no position has such a term."""

    by_probability: Array
    of_target: Array
    by_logit: Array | None = None


def chunks_of(table: Any, chunks: int) -> tuple[Array, Array]:
    """This device's part of the head in chunks, and each chunk's first id."""
    parts = table.reshape(chunks, -1, table.shape[1])
    return parts, axis_index("vocab") * table.shape[0] + jnp.arange(chunks) * parts.shape[1]


def _is_id(logits: Array, first: Array, ids: Array) -> Array:
    """Which of a chunk's logits is the target's, `[rows, chunk]`."""
    return jnp.arange(logits.shape[-1]) == (ids - first)[:, None]


def _of_ids(logits: Array, first: Array, ids: Array, is_whole: bool) -> Array:
    """The targets' logits, zero for those of other chunks or devices."""
    if is_whole:  # on CPUs the product with a mask would be another array
        return jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return jnp.where(_is_id(logits, first, ids), logits, 0.0).sum(-1)


class _Running(NamedTuple):
    """Sums so far, of exponentials after the shift `top`; `further`: weighted logits, squares and plain logits."""

    top: Array
    norm: Array
    chosen: Array
    further: tuple[Array, Array, Array] | None

    @classmethod
    def of(cls, ids: Array, has_moments: bool) -> "_Running":
        zeros = jnp.zeros(ids.shape, jnp.float32)
        return cls(zeros - jnp.inf, zeros, zeros, (zeros, zeros, zeros) if has_moments else None)

    def with_logits(self, logits: Array, chosen: Array) -> "_Running":
        top = jnp.maximum(self.top, logits.max(-1))
        was, exps = jnp.exp(self.top - top), jnp.exp(logits - top[:, None])
        further = None
        if self.further is not None:
            weighted, squares, total = self.further
            further = (
                weighted * was + (exps * logits).sum(-1), squares * was**2 + (exps**2).sum(-1), total + logits.sum(-1)
            )  # fmt: skip
        return _Running(top, self.norm * was + exps.sum(-1), self.chosen + chosen, further)

    def over_devices(self, vocab_size: int) -> LogitSums:
        top = pmax(self.top, "vocab")
        shift = jnp.exp(self.top - top)
        norm = psum(self.norm * shift, "vocab")
        moments = None
        if self.further is not None:
            weighted, squares, total = self.further
            log_squares = jnp.log(psum(squares * shift**2, "vocab")) - 2 * jnp.log(norm)
            mean = psum(weighted * shift, "vocab") / norm
            moments = LogitMoments(mean, log_squares, top, psum(total, "vocab") / vocab_size)
        return LogitSums(jnp.log(norm) + top, psum(self.chosen, "vocab"), moments)


def first_pass(
    rows: Float[Array, "blocks rows D"],
    ids: Int[Array, "blocks rows"],
    table: Head,
    soft_cap: float | None,
    chunks: int,
    has_moments: bool = False,
    asked: Asked | None = None,
) -> tuple[LogitSums, Array | None]:
    """The sums of each position's logits, of those `asked` for; and the chunks of a head that is sharded over `embed`,
    as they were gathered: `[chunks, D, ids]`. A head that is no plain array is one chunk."""
    is_cut = axis_size("embed") > 1
    is_whole = chunks * axis_size("vocab") == 1

    def one_chunk(sums: _Running, chunk: tuple[Any, Array]) -> tuple[_Running, Array | None]:
        part, first = chunk
        head = gathered_table(part, rows.dtype) if isinstance(part, jax.Array) else part

        def one_block(_: None, block: tuple[_Running, Array, Array]) -> tuple[None, _Running]:
            running, rows, ids = block
            logits = project(rows, head, soft_cap)
            return None, running.with_logits(logits, _of_ids(logits, first, ids, is_whole))

        # heads are kept in the gathered layout: no transposed copy
        return over_blocks(one_block, None, (sums, rows, ids), asked)[1], head.T if is_cut else None

    begun = _Running.of(ids, has_moments)
    if chunks == 1:
        sums, whole = one_chunk(begun, (table, jnp.asarray(axis_index("vocab") * table.shape[0])))
        heads = None if whole is None else whole[None]
    else:
        sums, heads = jax.lax.scan(one_chunk, begun, chunks_of(table, chunks))
    return sums.over_devices(table.shape[0] * axis_size("vocab")), heads


def second_pass(
    rows: Float[Array, "blocks rows D"],
    ids: Int[Array, "blocks rows"],
    table: Float[Array, "V columns"],
    log_norm: Float[Array, "blocks rows"],
    coefficients: Coefficients,
    soft_cap: float | None,
    chunks: int,
    heads: Array | None = None,
    asked: Asked | None = None,
) -> tuple[Float[Array, "blocks rows D"], Float[Array, "V columns"]]:
    """The gradients in `rows` (float32) and `table` (its dtype), whose coefficients are zero where nobody `asked`;
    `heads` as the first pass gathered them, or they are gathered again."""
    parts, firsts = chunks_of(table, chunks)

    def one_chunk(grad_rows: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        head = gathered_table(chunk[0], rows.dtype) if heads is None else chunk[0].T

        def one_block(grad_head: Array, block: tuple[Any, ...]) -> tuple[Array, Array]:
            rows, ids, log_norm, terms, grad_rows = block
            logits = project(rows, head, soft_cap)
            scale = terms.by_probability[:, None]
            scale = scale if terms.by_logit is None else scale + terms.by_logit[:, None] * logits
            grad = jnp.exp(logits - log_norm[:, None]) * scale
            grad += jnp.where(_is_id(logits, chunk[1], ids), terms.of_target[:, None], 0.0)
            if soft_cap is not None:
                grad *= 1 - (logits / soft_cap) ** 2
            grad = grad.astype(rows.dtype)
            grad_head += jax.lax.dot_general(grad, rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return grad_head, grad_rows + jnp.dot(grad, head, preferred_element_type=jnp.float32)

        zero = jnp.zeros(head.shape, jnp.float32)
        blocks = (rows, ids, log_norm, coefficients, grad_rows)
        grad_head, grad_rows = over_blocks(one_block, zero, blocks, asked)
        return grad_rows, reduce_scatter(grad_head.astype(rows.dtype), "embed", 1)

    zeros = jnp.zeros(rows.shape, jnp.float32)
    grad_rows, grad_parts = jax.lax.scan(one_chunk, zeros, (parts if heads is None else heads, firsts))
    return grad_rows, grad_parts.reshape(table.shape).astype(table.dtype)
