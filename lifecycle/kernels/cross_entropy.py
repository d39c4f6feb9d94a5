"""The output projection and its log-probabilities in blocks: logits of shape `[B, T, V]` never exist.

`token_logprobs(hidden, head, targets)` returns each target's log-probability. `cross_entropy` returns their weighted
sum and computes the gradient in the forward pass, block by block, from the same logits: three matmuls in all and no
recomputation, at the price of one `[V, D]` accumulator (the idea of Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models"). Blocks split the time axis, so a sharded batch axis stays sharded. If the
accumulator itself is too large, use chunks of the vocabulary: `cross_entropy(chunks=...)`.

In a manual `jax.shard_map` the hidden states' positions are sharded over `norm_seq` and the head's rows over `vocab`;
results are replicated over these axes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
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


def project(
    hidden: Float[Array, "*rows D"], head: Float[Array, "V D"], soft_cap: float | None = None
) -> Float[Array, "*rows V"]:
    """Logits in float32. `head` is contracted in its own layout: `hidden @ head.T` is 8 times slower for one row on a
    CPU."""
    dims = (((hidden.ndim - 1,), (1,)), ((), ()))
    return soft_capped(jax.lax.dot_general(hidden, head, dims, preferred_element_type=jnp.float32), soft_cap)


def soft_capped(logits: Float[Array, "*rows V"], soft_cap: float | None) -> Float[Array, "*rows V"]:
    """Logits bounded by `soft_cap` in both directions, if given (Gemma 2, section 2)."""
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _blocked(x: Array, size: int) -> Array:
    """`[B, T, ...]` to `[blocks, B, t, ...]` with at most `size` positions in each; padded with zeros at the end."""
    batch, length = x.shape[:2]
    size = min(length, max(1, size // batch))
    num = -(-length // size)
    x = jnp.pad(x, [(0, 0), (0, num * size - length)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, num, size, *x.shape[2:]).swapaxes(0, 1)


def _unblocked(blocks: Array, length: int) -> Array:
    num, batch, size = blocks.shape[:3]
    return blocks.swapaxes(0, 1).reshape(batch, num * size, *blocks.shape[3:])[:, :length]


def _is_target(head: Array, targets: Array) -> Array:
    """Which of this device's logits is the target's, `[*rows, V]`; none if it is on another device."""
    return jnp.arange(head.shape[0]) == (targets - axis_index("vocab") * head.shape[0])[..., None]


def _chosen(logits: Array, head: Array, targets: Array) -> Array:
    """This device's part of the targets' logits: zero for those on other devices."""
    if axis_size("vocab") == 1:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return jnp.where(_is_target(head, targets), logits, 0.0).sum(-1, keepdims=True)


@partial(jax.checkpoint, static_argnums=3)  # the backward pass recomputes a block's logits instead of saving all
def _block_logprobs(hidden: Array, head: Array, targets: Array, soft_cap: float | None) -> Array:
    logits = project(hidden, head, soft_cap)
    top = pmax(logits.max(-1, keepdims=True), "vocab")
    norm = psum_identity_grad(jnp.exp(logits - top).sum(-1, keepdims=True), "vocab")
    return (psum_identity_grad(_chosen(logits, head, targets), "vocab") - top - jnp.log(norm))[..., 0]


def _gathered(table: Array, dtype: jnp.dtype) -> Float[Array, "V D"]:
    """The head in the compute dtype, gathered over `d_model`. Shards are concatenated along their first dimension:
    along the second, the TPU compiler would copy the whole array."""
    return all_gather(table.astype(dtype).T, "embed", 0).T


def token_logprobs(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    targets: Int[Array, "B T"],
    soft_cap: float | None = None,
) -> Float[Array, "B T"]:
    """Log-probability of each target; differentiable in `hidden` and `table`."""
    return _logprobs(all_gather(hidden, "norm_seq", 1), _gathered(table, hidden.dtype), targets, soft_cap)


def _logprobs(hidden: Array, head: Array, targets: Array, soft_cap: float | None) -> Array:
    size = BLOCK[hidden.dtype.name]
    blocks = (_blocked(hidden, size), _blocked(targets, size))
    logprobs = jax.lax.map(lambda block: _block_logprobs(block[0], head, block[1], soft_cap), blocks)
    return _unblocked(logprobs, targets.shape[1])


def cross_entropy(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
) -> Float[Array, ""]:
    """`sum(weights * -log p(target))`: a sum, not a mean, so that parts of a batch add up exactly.

    Differentiable in `hidden` and `table` (the head's parameter; on a mesh, this device's shard of it); targets and
    weights are data. With `chunks` above 1 the loss passes over the vocabulary twice, in that many chunks: the logits'
    product is computed twice, and the head's full gradient is never in memory (for 70B parameters and a vocabulary of
    128,256 it takes 6 GB per device, in float32 and in the compute dtype).
    """
    return _cross_entropy(all_gather(hidden, "norm_seq", 1), table, targets, weights, soft_cap, chunks)


def _block_loss(
    hidden: Array, head: Array, targets: Array, weights: Array, soft_cap: float | None
) -> tuple[Array, Array]:
    """One block's loss and its gradient with respect to the logits."""
    logits = project(hidden, head, soft_cap)
    top = pmax(logits.max(-1, keepdims=True), "vocab")
    exps = jnp.exp(logits - top)
    norm = psum(exps.sum(-1, keepdims=True), "vocab")
    chosen = psum(_chosen(logits, head, targets), "vocab")
    weights = weights[..., None]
    grad = exps * (weights / norm) - jnp.where(_is_target(head, targets), weights, 0.0)
    if soft_cap is not None:
        grad *= 1 - (logits / soft_cap) ** 2
    return (weights * (jnp.log(norm) + top - chosen)).sum(), grad.astype(hidden.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int
) -> Array:
    return -(_logprobs(hidden, _gathered(table, hidden.dtype), targets, soft_cap) * weights).sum()


def _with_gradient(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int
) -> tuple[Array, tuple[Array, Array]]:
    if chunks > 1:
        return _in_two_passes(hidden, table, targets, weights, soft_cap, chunks)
    head, is_cut = _gathered(table, hidden.dtype), axis_size("embed") > 1

    def step(carry: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        loss, grad_head = carry
        rows, *rest = (x.reshape(-1, *x.shape[2:]) for x in block)  # 2-D: XLA's CPU product copies 3-D operands
        block_loss, grad = _block_loss(rows, head, rest[0], rest[1], soft_cap)
        if is_cut:
            grad_head += jax.lax.dot_general(grad, rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        else:  # transposed first: XLA's faster CPU products need this layout; saves 4 % of the quickstart's step
            grad_head += jnp.dot(jax.lax.optimization_barrier(rows.T), grad, preferred_element_type=jnp.float32)
        return (loss + block_loss, grad_head), (grad @ head).astype(hidden.dtype).reshape(block[0].shape)

    # Accumulated as [D, V], so that `rows`, the smaller array, is transposed; as [V, D] if it is reduce-scattered
    # afterwards, which the TPU compiler then does without a copy. Only this device's part is kept for the backward
    # pass, in the table's dtype (float32 in training).
    zero = (jnp.zeros((), jnp.float32), jnp.zeros(head.shape if is_cut else head.shape[::-1], jnp.float32))
    size = BLOCK[hidden.dtype.name]
    blocks = tuple(_blocked(x, size) for x in (hidden, targets, weights))
    (loss, grad_head), grad_blocks = jax.lax.scan(step, zero, blocks)
    # rounded like all gathered weights' gradients before they cross the network
    grad_table = reduce_scatter(grad_head.astype(hidden.dtype), "embed", 1) if is_cut else grad_head.T
    return loss, (_unblocked(grad_blocks, hidden.shape[1]), grad_table.astype(table.dtype))


def _in_two_passes(
    hidden: Array, table: Array, targets: Array, weights: Array, soft_cap: float | None, chunks: int
) -> tuple[Array, tuple[Array, Array]]:
    """The loss and its gradients, over chunks of the vocabulary: first every position's normaliser, then the logits
    again and their gradients. A sharded head is gathered once and kept in the compute dtype; its full gradient never
    exists."""
    rows, ids, scale = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1, 1)
    parts, is_cut = table.reshape(chunks, -1, table.shape[1]), axis_size("embed") > 1
    firsts = axis_index("vocab") * table.shape[0] + jnp.arange(chunks) * parts.shape[1]

    def is_target(first: Array) -> Array:
        return jnp.arange(parts.shape[1]) == (ids - first)[:, None]

    def normalise(carry: tuple[Array, Array, Array], chunk: tuple[Array, Array]) -> tuple[Any, Any]:
        (top, norm, chosen), head = carry, _gathered(chunk[0], hidden.dtype)
        logits = project(rows, head, soft_cap)
        new_top = jnp.maximum(top, logits.max(-1, keepdims=True))
        norm = norm * jnp.exp(top - new_top) + jnp.exp(logits - new_top).sum(-1, keepdims=True)
        chosen += jnp.where(is_target(chunk[1]), logits, 0.0).sum(-1, keepdims=True)
        return (new_top, norm, chosen), head.T if is_cut else None  # in the gathered layout: no transposed copy

    zeros = jnp.zeros((rows.shape[0], 1), jnp.float32)
    (top, norm, chosen), heads = jax.lax.scan(normalise, (zeros - jnp.inf, zeros, zeros), (parts, firsts))
    highest = pmax(top, "vocab")
    log_norm = jnp.log(psum(norm * jnp.exp(top - highest), "vocab")) + highest
    loss = (scale * (log_norm - psum(chosen, "vocab"))).sum()

    def differentiate(grad_rows: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        part, first = chunk
        head = part.T if is_cut else _gathered(part, hidden.dtype)
        logits = project(rows, head, soft_cap)
        grad = scale * (jnp.exp(logits - log_norm) - jnp.where(is_target(first), 1.0, 0.0))
        if soft_cap is not None:
            grad *= 1 - (logits / soft_cap) ** 2
        grad = grad.astype(hidden.dtype)
        grad_rows += jnp.dot(grad, head, preferred_element_type=jnp.float32)
        grad_head = jax.lax.dot_general(grad, rows, (((0,), (0,)), ((), ())), preferred_element_type=hidden.dtype)
        return grad_rows, reduce_scatter(grad_head, "embed", 1)

    grad_rows, grad_parts = jax.lax.scan(
        differentiate, jnp.zeros(rows.shape, jnp.float32), (heads if is_cut else parts, firsts)
    )
    return loss, (grad_rows.astype(hidden.dtype).reshape(hidden.shape), grad_parts.reshape(table.shape))


def _gradient(_: float | None, __: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array, None, None]:
    grad_hidden, grad_head = saved
    return (grad_hidden * grad).astype(grad_hidden.dtype), (grad_head * grad).astype(grad_head.dtype), None, None


_cross_entropy.defvjp(_with_gradient, _gradient)
