"""The output projection and its log-probabilities in blocks: logits of shape `[B, T, V]` never exist.

`token_logprobs(hidden, head, targets)` returns each target's log-probability. `cross_entropy` returns their weighted
sum and computes the gradient in the forward pass, block by block, from the same logits: three matmuls in all and no
recomputation, at the price of one `[V, D]` accumulator (the idea of Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models"). Blocks split the time axis, so a sharded batch axis stays sharded. If the
accumulator itself is too large, use `chunks` of the vocabulary: two passes over them, the first for each position's
normaliser, the second for the gradients. The logits' product is then computed twice, and the head's full gradient is
never in memory (for 70B parameters and a vocabulary of 128,256 it takes 6 GB per device, in float32 and in the compute
dtype). Blocks have as many more positions as there are chunks, so that no more logits exist at once than in one pass.
The hidden states' gradient is summed over the chunks in float32: a device with several times more positions than there
are ids spends more on it than the head saves.

In a manual `jax.shard_map` the hidden states' positions are sharded over `norm_seq` and the head's rows over `vocab`;
results are replicated over these axes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.logits import Head, exponential_sums, project
from lifecycle.kernels.quantised import QuantisedTable
from lifecycle.parallel.collectives import (
    all_gather,
    axis_index,
    axis_size,
    pmax,
    psum,
    psum_identity_grad,
    reduce_scatter,
)

# Positions in a block. 256 x 4096 logits, 4 MB in float32, stay in a CPU's last-level cache; 1,024 are 10 % slower. An
# accelerator's matrix unit wants many rows, and each block reads and writes the gradient's accumulator once; with 4096
# instead, the 8B model's step on a v5p takes 18 M more cycles, of 3,924 M, and 0.85 GB more.
BLOCK = {"float32": 256, "bfloat16": 2048}


def blocked(x: Array, size: int) -> Array:
    """`[B, T, ...]` to `[blocks, B, t, ...]` with at most `size` positions in each; padded with zeros at the end."""
    batch, length = x.shape[:2]
    size = min(length, max(1, size // batch))
    num = -(-length // size)
    x = jnp.pad(x, [(0, 0), (0, num * size - length)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, num, size, *x.shape[2:]).swapaxes(0, 1)


def unblocked(blocks: Array, length: int) -> Array:
    """The reverse, of `[blocks, B, t, ...]`, for rows of `length` positions."""
    num, batch, size = blocks.shape[:3]
    return blocks.swapaxes(0, 1).reshape(batch, num * size, *blocks.shape[3:])[:, :length]


def _is_target(head: Head, targets: Array) -> Array:
    """Which of this device's logits is the target's, `[*rows, V]`; none if it is on another device."""
    return jnp.arange(head.shape[0]) == (targets - axis_index("vocab") * head.shape[0])[..., None]


def _chosen(logits: Array, head: Head, targets: Array) -> Array:
    """This device's part of the targets' logits: zero for those on other devices."""
    if axis_size("vocab") == 1:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return jnp.where(_is_target(head, targets), logits, 0.0).sum(-1, keepdims=True)


@partial(jax.checkpoint, static_argnums=3)  # the backward pass recomputes a block's logits instead of saving all
def _block_logprobs(hidden: Array, head: Head, targets: Array, soft_cap: float | None) -> Array:
    logits = project(hidden, head, soft_cap)
    top = pmax(logits.max(-1, keepdims=True), "vocab")
    norm = psum_identity_grad(jnp.exp(logits - top).sum(-1, keepdims=True), "vocab")
    return (psum_identity_grad(_chosen(logits, head, targets), "vocab") - top - jnp.log(norm))[..., 0]


def gathered_table(table: Array, dtype: jnp.dtype) -> Shaped[Array, "V D"]:
    """The head in the compute dtype, gathered over `d_model`. Shards are concatenated along their first dimension:
    along the second, the TPU compiler would copy the whole array."""
    return all_gather(table.astype(dtype).T, "embed", 0).T


def token_logprobs(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"] | QuantisedTable,
    targets: Int[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
) -> Float[Array, "B T"]:
    """Log-probability of each target; differentiable in `hidden` and `table`. `chunks` as in `cross_entropy`, for plain
    tables."""
    hidden = all_gather(hidden, "norm_seq", 1)
    if isinstance(table, QuantisedTable):
        scale = gathered_table(table.scale, table.scale.dtype) if table.scale.shape[1] > 1 else table.scale
        table = QuantisedTable(gathered_table(table.values, table.values.dtype), scale)
        return _logprobs(hidden, table, targets, soft_cap)
    if chunks > 1:
        return _chunked_logprobs(hidden, table, targets, soft_cap, chunks)
    return _logprobs(hidden, gathered_table(table, hidden.dtype), targets, soft_cap)


def _logprobs(hidden: Array, head: Head, targets: Array, soft_cap: float | None) -> Array:
    size = BLOCK[hidden.dtype.name]
    blocks = (blocked(hidden, size), blocked(targets, size))
    logprobs = jax.lax.map(lambda block: _block_logprobs(block[0], head, block[1], soft_cap), blocks)
    return unblocked(logprobs, targets.shape[1])


def cross_entropy(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
    z_weight: float = 0.0,
) -> Float[Array, ""]:
    """`sum(weights * (-log p(target) + z_weight * log(Z)^2))`: a sum, not a mean, so that parts of a batch add up
    exactly. `Z` is the softmax's normaliser: the z-loss keeps it near 1 (Chowdhery et al. 2022, "PaLM", section 5).

    Differentiable in `hidden` and `table` (the head's parameter; on a mesh, this device's shard of it); targets and
    weights are data. `chunks` of the vocabulary: above 1 it costs a second product and saves the head's full gradient.
    """
    return _cross_entropy(all_gather(hidden, "norm_seq", 1), table, targets, weights, soft_cap, chunks, z_weight)


def _block_loss(
    hidden: Array, head: Array, targets: Array, weights: Array, soft_cap: float | None, z_weight: float
) -> tuple[Array, Array]:
    """One block's loss and its gradient with respect to the logits."""
    logits = project(hidden, head, soft_cap)
    shift, total = exponential_sums(hidden, head, logits, soft_cap)
    top = pmax(shift, "vocab")
    norm = psum(total * jnp.exp(shift - top), "vocab")
    exps = jnp.exp(logits - top)
    chosen = psum(_chosen(logits, head, targets), "vocab")
    weights = weights[..., None]
    log_norm = jnp.log(norm) + top
    losses, share = log_norm - chosen, weights / norm
    if z_weight:
        losses, share = losses + z_weight * log_norm**2, share * (1 + 2 * z_weight * log_norm)
    grad = exps * share - jnp.where(_is_target(head, targets), weights, 0.0)
    if soft_cap is not None:
        grad *= 1 - (logits / soft_cap) ** 2
    return (weights * losses).sum(), grad.astype(hidden.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int, z_weight: float
) -> Array:
    if z_weight:
        return _with_gradient(hidden, table, targets, weights, soft_cap, chunks, z_weight)[0]
    return -(_logprobs(hidden, gathered_table(table, hidden.dtype), targets, soft_cap) * weights).sum()


def _with_gradient(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int, z_weight: float
) -> tuple[Array, tuple[Array, Array]]:
    if chunks > 1:
        return _in_two_passes(hidden, table, targets, weights, soft_cap, chunks, z_weight)
    head, is_cut = gathered_table(table, hidden.dtype), axis_size("embed") > 1
    kept = head.T if is_cut else head  # a gathered head comes as `[D, V]`; as `[V, D]` the loop would have a copy of it
    # transposed first: XLA's faster CPU products need this layout; saves 4 % of the quickstart's step
    across = jnp.transpose if is_cut else lambda rows: jax.lax.optimization_barrier(rows.T)

    def step(carry: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        loss, grad_columns = carry
        head = kept.T if is_cut else kept
        rows, *rest = (x.reshape(-1, *x.shape[2:]) for x in block)  # 2-D: XLA's CPU product copies 3-D operands
        block_loss, grad = _block_loss(rows, head, rest[0], rest[1], soft_cap, z_weight)
        grad_columns += jnp.dot(across(rows), grad, preferred_element_type=jnp.float32)
        return (loss + block_loss, grad_columns), (grad @ head).astype(hidden.dtype).reshape(block[0].shape)

    size = BLOCK[hidden.dtype.name]
    blocks = tuple(blocked(x, size) for x in (hidden, targets, weights))
    zero = (jnp.zeros((), jnp.float32), jnp.zeros(head.shape[::-1], jnp.float32))
    (loss, grad_columns), grad_blocks = (
        _scan_but_last(step, zero, blocks) if is_cut else jax.lax.scan(step, zero, blocks)
    )
    # Only this device's part is kept for the backward pass, in the table's dtype (float32 in training). It is rounded
    # like all gathered weights' gradients before they cross the network.
    grad_table = reduce_scatter(grad_columns.astype(hidden.dtype), "embed", 0) if is_cut else grad_columns
    return loss, (unblocked(grad_blocks, hidden.shape[1]), grad_table.T.astype(table.dtype))


def _scan_but_last(step: Any, carry: Any, blocks: tuple[Array, ...]) -> tuple[Any, Array]:
    """`jax.lax.scan` whose last step is outside the loop, where the product that ends a sum can round it, too."""
    num = blocks[0].shape[0]

    def at(carry: Any, number: Array | int) -> tuple[Any, Array]:
        return step(carry, tuple(jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in blocks))

    carry, outs = jax.lax.scan(at, carry, jnp.arange(num - 1))
    carry, last = at(carry, num - 1)
    return carry, jnp.concatenate([outs, last[None]])


def _in_two_passes(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int, z_weight: float
) -> tuple[Array, tuple[Array, Array]]:
    """The loss and its gradients, over chunks of the vocabulary. A sharded head is gathered once and kept."""
    log_norm, chosen, heads = _normalise(hidden, table, targets, soft_cap, chunks)
    losses = log_norm - chosen + (z_weight * log_norm**2 if z_weight else 0)
    loss = (_row_blocks(weights, hidden.dtype, chunks) * losses).sum()
    return loss, _differentiate(hidden, table, targets, weights, log_norm, soft_cap, chunks, heads, z_weight)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked_logprobs(hidden: Array, table: Array, targets: Array, soft_cap: float | None, chunks: int) -> Array:
    return _save_norms(hidden, table, targets, soft_cap, chunks)[0]


def _save_norms(
    hidden: Array, table: Array, targets: Array, soft_cap: float | None, chunks: int
) -> tuple[Array, tuple[Array, ...]]:
    log_norm, chosen, _ = _normalise(hidden, table, targets, soft_cap, chunks)
    logprobs = (chosen - log_norm).reshape(-1)[: targets.size].reshape(targets.shape)
    return logprobs, (hidden, table, targets, log_norm)


def _from_norms(
    soft_cap: float | None, chunks: int, saved: tuple[Array, ...], grad: Array
) -> tuple[Array, Array, None]:
    hidden, table, targets, log_norm = saved
    return *_differentiate(hidden, table, targets, -grad, log_norm, soft_cap, chunks), None


_chunked_logprobs.defvjp(_save_norms, _from_norms)


def _row_blocks(x: Array, dtype: jnp.dtype, chunks: int) -> Array:
    """`[B, T, ...]` to `[blocks, rows, ...]`, padded with zeros at the end; `dtype`: that of the products."""
    return blocked(x.reshape(1, -1, *x.shape[2:]), BLOCK[dtype.name] * chunks)[:, 0]


def _chunks_of(table: Array, chunks: int) -> tuple[Array, Array]:
    """This device's part of the head in chunks, and each chunk's first id."""
    parts = table.reshape(chunks, -1, table.shape[1])
    return parts, axis_index("vocab") * table.shape[0] + jnp.arange(chunks) * parts.shape[1]


def _is_id(head: Array, first: Array, ids: Array) -> Array:
    """Which of a chunk's logits is the target's, `[rows, chunk]`."""
    return jnp.arange(head.shape[0]) == (ids - first)[:, None]


def _normalise(
    hidden: Array, table: Array, targets: Array, soft_cap: float | None, chunks: int
) -> tuple[Array, Array, Array | None]:
    """The first pass: each position's log-normaliser and its target's logit, `[blocks, rows]`, and the chunks of a
    sharded head as they were gathered."""
    is_cut = axis_size("embed") > 1
    rows, ids = (_row_blocks(x, hidden.dtype, chunks) for x in (hidden, targets))

    def one_chunk(sums: tuple[Array, Array, Array], chunk: tuple[Array, Array]) -> tuple[Any, Array | None]:
        head, first = gathered_table(chunk[0], hidden.dtype), chunk[1]

        def one_block(block: tuple[Array, ...]) -> tuple[Array, Array, Array]:
            top, norm, chosen, rows, ids = block
            logits = project(rows, head, soft_cap)
            new_top = jnp.maximum(top, logits.max(-1))
            norm = norm * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
            return new_top, norm, chosen + jnp.where(_is_id(head, first, ids), logits, 0.0).sum(-1)

        # heads are kept in the gathered layout: no transposed copy
        return jax.lax.map(one_block, (*sums, rows, ids)), head.T if is_cut else None

    zeros = jnp.zeros(ids.shape, jnp.float32)
    (top, norm, chosen), heads = jax.lax.scan(one_chunk, (zeros - jnp.inf, zeros, zeros), _chunks_of(table, chunks))
    highest = pmax(top, "vocab")
    return jnp.log(psum(norm * jnp.exp(top - highest), "vocab")) + highest, psum(chosen, "vocab"), heads


def _differentiate(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    log_norm: Array,
    soft_cap: float | None,
    chunks: int,
    heads: Array | None = None,
    z_weight: float = 0.0,
) -> tuple[Array, Array]:
    """The second pass: gradients of `cross_entropy`'s sum in `hidden` and `table`; `heads` as `_normalise` gathered
    them, or they are gathered again."""
    rows, ids, scale = (_row_blocks(x, hidden.dtype, chunks) for x in (hidden, targets, weights))
    parts, firsts = _chunks_of(table, chunks)

    def one_chunk(grad_rows: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        head = gathered_table(chunk[0], hidden.dtype) if heads is None else chunk[0].T

        def one_block(grad_head: Array, block: tuple[Array, ...]) -> tuple[Array, Array]:
            rows, ids, scale, log_norm, grad_rows = block
            logits = project(rows, head, soft_cap)
            grad = jnp.exp(logits - log_norm[:, None])
            if z_weight:
                grad *= 1 + 2 * z_weight * log_norm[:, None]
            grad -= jnp.where(_is_id(head, chunk[1], ids), 1.0, 0.0)
            grad *= scale[:, None]
            if soft_cap is not None:
                grad *= 1 - (logits / soft_cap) ** 2
            grad = grad.astype(hidden.dtype)
            grad_head += jax.lax.dot_general(grad, rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return grad_head, grad_rows + jnp.dot(grad, head, preferred_element_type=jnp.float32)

        zero = jnp.zeros(head.shape, jnp.float32)
        grad_head, grad_rows = jax.lax.scan(one_block, zero, (rows, ids, scale, log_norm, grad_rows))
        return grad_rows, reduce_scatter(grad_head.astype(hidden.dtype), "embed", 1)

    zeros = jnp.zeros(rows.shape, jnp.float32)
    grad_rows, grad_parts = jax.lax.scan(one_chunk, zeros, (parts if heads is None else heads, firsts))
    grad_rows = grad_rows.reshape(-1, rows.shape[-1])[: targets.size]
    return grad_rows.astype(hidden.dtype).reshape(hidden.shape), grad_parts.reshape(table.shape).astype(table.dtype)


def _gradient(
    _: float | None, __: int, ___: float, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array, None, None]:
    grad_hidden, grad_head = saved
    return (grad_hidden * grad).astype(grad_hidden.dtype), (grad_head * grad).astype(grad_head.dtype), None, None


_cross_entropy.defvjp(_with_gradient, _gradient)
