"""Logits of a few ids at each position, and log-probabilities among them: of those that a sampler with top-k or top-p
drew a token from, or that a teacher finds likeliest.

They need the logits of these ids alone, neither a pass over the vocabulary nor its gradient. What must hold: the
gradients are those of the plain formula, and no array of positions by ids by `d_model` is larger than a block's. In a
manual `jax.shard_map` as `kernels/token_statistics.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.logits import soft_capped
from lifecycle.kernels.row_blocks import of_rows, row_blocks
from lifecycle.kernels.vocabulary import chunks_of, gathered_table
from lifecycle.parallel.collectives import all_gather, psum, reduce_scatter

MOST_PICKED = 2**24  # numbers of the head's rows that a block picks: 67 MB in float32
NO_LOGIT = -1e30  # in place of an id that is not there; finite, so that no gradient is NaN


def kept_logprobs(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    targets: Int[Array, "B T"],
    kept: Int[Array, "B T kept"],
    soft_cap: float | None = None,
    chunks: int = 1,
    temperature: float = 1.0,
) -> Float[Array, "B T"]:
    """Log-probability of each target among the ids `kept` of its position (-1: none), in nats; 0 where there are none.
    Where there are, the target is one of them. Differentiable in `hidden` and `table`; `chunks` of the vocabulary."""
    logits = logits_of(hidden, table, kept, soft_cap, chunks) / temperature
    norm = jax.nn.logsumexp(jnp.where(kept >= 0, logits, NO_LOGIT), axis=-1)
    chosen = jnp.where(kept == targets[..., None], logits, 0.0).sum(-1)
    return jnp.where((kept >= 0).any(-1), chosen - norm, 0.0)


def logits_of(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    ids: Int[Array, "B T kept"],
    soft_cap: float | None = None,
    chunks: int = 1,
) -> Float[Array, "B T kept"]:
    """The logits of each position's `ids`, in float32; anything for ids that are none. Differentiable in `hidden` and
    `table`; `chunks` of the vocabulary."""
    return soft_capped(_logits(all_gather(hidden, "norm_seq", 1), table, ids, chunks), soft_cap)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _logits(hidden: Array, table: Array, ids: Array, chunks: int) -> Float[Array, "B T kept"]:
    """The products of hidden states with the head's rows, in float32; anything for ids that are none."""
    size = _block_size(hidden, ids)
    rows, wanted = row_blocks(hidden, size), row_blocks(ids, size)

    def one_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        head = gathered_table(chunk[0], hidden.dtype)

        def one_block(block: tuple[Array, Array, Array]) -> Array:
            total, rows, ids = block
            place, is_own = _places(ids, chunk[1], len(head))
            found = jnp.einsum("nd,nkd->nk", rows, head[place], preferred_element_type=jnp.float32)
            return total + jnp.where(is_own, found, 0.0)

        return jax.lax.map(one_block, (total, rows, wanted)), None

    total, _ = jax.lax.scan(one_chunk, jnp.zeros(wanted.shape, jnp.float32), chunks_of(table, chunks))
    return psum(of_rows(total, ids.shape[:2]), "vocab")


def _block_size(hidden: Array, ids: Array) -> int:
    return max(8, MOST_PICKED // (ids.shape[-1] * hidden.shape[-1]) // 8 * 8)


def _places(ids: Array, first: Array, num: int) -> tuple[Array, Array]:
    """Ids as places in a chunk of `num` from `first` on, and which of them are there; the others have the place 0."""
    is_own = (ids >= first) & (ids < first + num)
    return jnp.where(is_own, ids - first, 0), is_own


def _forward(hidden: Array, table: Array, ids: Array, chunks: int) -> tuple[Array, tuple[Array, Array, Array]]:
    return _logits(hidden, table, ids, chunks), (hidden, table, ids)


def _backward(chunks: int, saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    """Each block adds to the head's gradient in place: differentiating the loop would add a whole head for each."""
    hidden, table, ids = saved
    size = _block_size(hidden, ids)
    blocks = row_blocks(hidden, size), row_blocks(ids, size), row_blocks(grad, size)

    def one_chunk(grad_rows: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        head = gathered_table(chunk[0], hidden.dtype)

        def one_block(grad_head: Array, block: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            rows, ids, grad, grad_rows = block
            place, is_own = _places(ids, chunk[1], len(head))
            own = jnp.where(is_own, grad, 0.0)
            grad_rows += jnp.einsum("nk,nkd->nd", own, head[place], preferred_element_type=jnp.float32)
            return grad_head.at[place].add(own[..., None] * rows[:, None].astype(jnp.float32)), grad_rows

        grad_head, grad_rows = jax.lax.scan(one_block, jnp.zeros(head.shape, jnp.float32), (*blocks, grad_rows))
        return grad_rows, reduce_scatter(grad_head.astype(hidden.dtype), "embed", 1)

    start = jnp.zeros(blocks[0].shape, jnp.float32)
    grad_rows, grad_parts = jax.lax.scan(one_chunk, start, chunks_of(table, chunks))
    grad_table = grad_parts.reshape(table.shape).astype(table.dtype)
    return of_rows(grad_rows, ids.shape[:2]).astype(hidden.dtype), grad_table, None


_logits.defvjp(_forward, _backward)
