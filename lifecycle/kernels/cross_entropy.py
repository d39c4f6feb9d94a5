"""The output projection and a weighted sum of log-probabilities in blocks: logits of shape `[B, T, V]` never exist.

`cross_entropy` computes the gradient in the forward pass, block by block, from the same logits: three matmuls in all
and no recomputation, at the price of one `[V, D]` accumulator (the idea of Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models"). Where weights are not known beforehand: `kernels/token_statistics.py`. Blocks split
the time axis, so a sharded batch axis stays sharded. If the accumulator itself is too large, use `chunks` of the
vocabulary: two passes over them (`kernels/vocabulary.py`), the first for each position's normaliser, the second for the
gradients. The logits' product is then computed twice, and the head's full gradient is never in memory (for 70B
parameters and a vocabulary of 128,256 it takes 6 GB per device, in float32 and in the compute dtype). Blocks have as
many more positions as there are chunks, so that no more logits exist at once than in one pass. The hidden states'
gradient is summed over the chunks in float32: a device with several times more positions than there are ids spends more
on it than the head saves.

In a manual `jax.shard_map` the hidden states' positions are sharded over `norm_seq` and the head's rows over `vocab`;
results are replicated over these axes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.logits import Head, exponential_sums, project
from lifecycle.kernels.row_blocks import Asked, asked_first, blocked, of_rows, over_blocks, row_blocks, unblocked
from lifecycle.kernels.vocabulary import (
    BLOCK,
    Coefficients,
    LogitSums,
    first_pass,
    gathered_table,
    second_pass,
)
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, pmax, psum, reduce_scatter


def _is_target(head: Head, targets: Array) -> Array:
    """Which of this device's logits is the target's, `[*rows, V]`; none if it is on another device."""
    return jnp.arange(head.shape[0]) == (targets - axis_index("vocab") * head.shape[0])[..., None]


def _chosen(logits: Array, head: Head, targets: Array) -> Array:
    """This device's part of the targets' logits: zero for those on other devices."""
    if axis_size("vocab") == 1:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return jnp.where(_is_target(head, targets), logits, 0.0).sum(-1, keepdims=True)


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
    form = _Form(soft_cap, chunks, z_weight, False)
    return _cross_entropy(all_gather(hidden, "norm_seq", 1), table, targets, weights, None, form)[0]


def cross_entropy_and_metrics(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
    z_weight: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """`cross_entropy`, and two more weighted sums of the same logits, without gradients: the softmax's entropies in
    nats, and whether the target is among the likeliest ids. Positions without weight cost nothing."""
    form, asked = _Form(soft_cap, chunks, z_weight, True), asked_first(weights != 0)
    loss, *metrics = _cross_entropy(all_gather(hidden, "norm_seq", 1), table, targets, weights, asked, form)
    entropies, right = jax.lax.stop_gradient(metrics)
    return loss, entropies, right


class _Form(NamedTuple):
    """What decides the program."""

    soft_cap: float | None
    chunks: int
    z_weight: float
    has_metrics: bool

    @property
    def num_sums(self) -> int:
        return 3 if self.has_metrics else 1


def _block_loss(hidden: Array, head: Array, targets: Array, weights: Array, form: _Form) -> tuple[Array, Array]:
    """One block's sums, the loss first, and the loss's gradient with respect to the logits."""
    soft_cap, z_weight = form.soft_cap, form.z_weight
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
    sums = [losses]
    if form.has_metrics:
        largest = pmax(logits.max(-1, keepdims=True), "vocab")
        sums += [log_norm - psum((exps * logits).sum(-1, keepdims=True), "vocab") / norm, chosen >= largest]
    grad = exps * share - jnp.where(_is_target(head, targets), weights, 0.0)
    if soft_cap is not None:
        grad *= 1 - (logits / soft_cap) ** 2
    return jnp.stack([(weights * values).sum() for values in sums]), grad.astype(hidden.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, asked: Asked | None, form: _Form
) -> Array:
    """The sums, `[num_sums]`; only the first has a gradient."""
    size = BLOCK[hidden.dtype.name] * form.chunks
    rows, ids, scale = (row_blocks(x, size, asked) for x in (hidden, targets, weights))
    sums = first_pass(rows, ids, table, form.soft_cap, form.chunks, form.has_metrics, asked)[0]
    return _summed(sums, scale, form)


def _summed(found: LogitSums, weights: Array, form: _Form) -> Array:
    losses = -found.logprobs + (form.z_weight * found.log_norm**2 if form.z_weight else 0)
    sums = [losses]
    if found.moments is not None:
        sums += [found.log_norm - found.moments.mean, found.chosen >= found.moments.top]
    # a block that nobody asked for has no sums: its logarithms are infinite
    return jnp.stack([jnp.where(weights != 0, weights * values, 0).sum() for values in sums])


def _with_gradient(
    hidden: Array, table: Array, targets: Array, weights: Array, asked: Asked | None, form: _Form
) -> tuple[Array, tuple[Array, Array]]:
    if form.chunks > 1:
        return _in_two_passes(hidden, table, targets, weights, asked, form)
    head, is_cut = gathered_table(table, hidden.dtype), axis_size("embed") > 1
    kept = head.T if is_cut else head  # a gathered head comes as `[D, V]`; as `[V, D]` the loop would have a copy of it
    # transposed first: XLA's faster CPU products need this layout; saves 4 % of the quickstart's step
    across = jnp.transpose if is_cut else lambda rows: jax.lax.optimization_barrier(rows.T)

    def step(carry: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        sums, grad_columns = carry
        head = kept.T if is_cut else kept
        # 2-D: XLA's CPU product copies 3-D operands
        rows, *rest = block if asked is not None else (x.reshape(-1, *x.shape[2:]) for x in block)
        of_block, grad = _block_loss(rows, head, rest[0], rest[1], form)
        grad_columns += jnp.dot(across(rows), grad, preferred_element_type=jnp.float32)
        return (sums + of_block, grad_columns), (grad @ head).astype(hidden.dtype).reshape(block[0].shape)

    size = BLOCK[hidden.dtype.name]
    zero = (jnp.zeros(form.num_sums, jnp.float32), jnp.zeros(head.shape[::-1], jnp.float32))
    if asked is None:
        blocks = tuple(blocked(x, size) for x in (hidden, targets, weights))
        (sums, grad_columns), grads = _scan_but_last(step, zero, blocks) if is_cut else jax.lax.scan(step, zero, blocks)
        grad_hidden = unblocked(grads, hidden.shape[1])
    else:
        blocks = tuple(row_blocks(x, size, asked) for x in (hidden, targets, weights))
        (sums, grad_columns), grads = over_blocks(step, zero, blocks, asked)
        grad_hidden = of_rows(grads, targets.shape, asked)
    # Only this device's part is kept for the backward pass, in the table's dtype (float32 in training). It is rounded
    # like all gathered weights' gradients before they cross the network.
    grad_table = reduce_scatter(grad_columns.astype(hidden.dtype), "embed", 0) if is_cut else grad_columns
    return sums, (grad_hidden, grad_table.T.astype(table.dtype))


def _scan_but_last(step: Any, carry: Any, blocks: tuple[Array, ...]) -> tuple[Any, Array]:
    """`jax.lax.scan` whose last step is outside the loop, where the product that ends a sum can round it, too."""
    num = blocks[0].shape[0]

    def at(carry: Any, number: Array | int) -> tuple[Any, Array]:
        return step(carry, tuple(jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in blocks))

    carry, outs = jax.lax.scan(at, carry, jnp.arange(num - 1))
    carry, last = at(carry, num - 1)
    return carry, jnp.concatenate([outs, last[None]])


def _in_two_passes(
    hidden: Array, table: Array, targets: Array, weights: Array, asked: Asked | None, form: _Form
) -> tuple[Array, tuple[Array, Array]]:
    """The sums and the loss's gradients, over chunks of the vocabulary. A sharded head is gathered once and kept."""
    size = BLOCK[hidden.dtype.name] * form.chunks
    rows, ids, scale = (row_blocks(x, size, asked) for x in (hidden, targets, weights))
    sums, heads = first_pass(rows, ids, table, form.soft_cap, form.chunks, form.has_metrics, asked)
    factor = 1 + 2 * form.z_weight * sums.log_norm if form.z_weight else 1.0
    terms = Coefficients(scale * factor, -scale)
    settings = form.soft_cap, form.chunks, heads, asked
    grad_rows, grad_table = second_pass(rows, ids, table, sums.log_norm, terms, *settings)
    return _summed(sums, scale, form), (of_rows(grad_rows, targets.shape, asked).astype(hidden.dtype), grad_table)


def _gradient(_: _Form, saved: tuple[Array, Array], grads: Array) -> tuple[Array, Array, None, None, None]:
    (grad_hidden, grad_head), grad = saved, grads[0]
    return (grad_hidden * grad).astype(grad_hidden.dtype), (grad_head * grad).astype(grad_head.dtype), None, None, None


_cross_entropy.defvjp(_with_gradient, _gradient)
