"""Cross-entropy of a small model with the distribution of a larger one, in blocks: logits `[B, T, V]` never exist.

Both models' hidden states are multiplied by the same rows of one output projection, which is not trained, so only the
small one's hidden states have a gradient. It is computed in the forward pass, from the same logits: three products in
all (`kernels/cross_entropy.py` does that for targets that are tokens).

In a manual `jax.shard_map` the small model's positions are sharded over `norm_seq`, the larger one's are not, and the
table's rows over `vocab`; results are replicated over these axes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.logits import project
from lifecycle.kernels.row_blocks import blocked, unblocked
from lifecycle.kernels.vocabulary import BLOCK, gathered_table
from lifecycle.parallel.collectives import all_gather, axis_index, pmax, psum


def distillation(
    hidden: Float[Array, "B t D"],
    target: Float[Array, "B T D"],
    table: Float[Array, "V columns"],
    weights: Float[Array, "B T"],
    soft_cap: float | None = None,
) -> tuple[Float[Array, ""], Int[Array, "B T"]]:
    """`sum(weights * sum_v -p(v) log q(v))`, `p` by the `target`'s hidden states and `q` by `hidden`, and the likeliest
    row of the table by `hidden` at each position. Differentiable in `hidden`."""
    return _distilled(all_gather(hidden, "norm_seq", 1), target, table, weights, soft_cap)


def likeliest(
    hidden: Float[Array, "B T D"], table: Float[Array, "V columns"], soft_cap: float | None = None
) -> Int[Array, "B T"]:
    """The likeliest row of the table at each position; the first of equal ones."""
    head = gathered_table(table, hidden.dtype)
    best = jax.lax.map(lambda rows: _best(project(rows, head, soft_cap)), blocked(hidden, BLOCK[hidden.dtype.name]))
    return unblocked(best, hidden.shape[1])


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _distilled(
    hidden: Array, target: Array, table: Array, weights: Array, soft_cap: float | None
) -> tuple[Array, Array]:
    return _with_gradient(hidden, target, table, weights, soft_cap)[0]


def _with_gradient(
    hidden: Array, target: Array, table: Array, weights: Array, soft_cap: float | None
) -> tuple[tuple[Array, Array], Array]:
    head = gathered_table(table, hidden.dtype)

    def step(total: Array, block: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        rows, of_target, scale = (x.reshape(-1, *x.shape[2:]) for x in block)
        loss, best, grad = _block(rows, of_target, head, scale[:, None], soft_cap)
        shape = block[0].shape
        return total + loss, (best.reshape(shape[:2]), (grad @ head).astype(hidden.dtype).reshape(shape))

    blocks = tuple(blocked(x, BLOCK[hidden.dtype.name]) for x in (hidden, target, weights))
    total, outs = jax.lax.scan(step, jnp.zeros((), jnp.float32), blocks)
    best, grad = (unblocked(x, hidden.shape[1]) for x in outs)
    return (total, best), grad


def _block(
    rows: Array, of_target: Array, head: Array, weights: Array, soft_cap: float | None
) -> tuple[Array, Array, Array]:
    """A block's loss, its likeliest ids, and the loss's gradient in the logits."""
    logits = project(rows, head, soft_cap)
    log_q, log_p = _log_softmax(logits), _log_softmax(project(of_target, head, soft_cap))
    p = jnp.exp(log_p)
    loss = -psum((weights * p * log_q).sum(), "vocab")
    grad = weights * (jnp.exp(log_q) - p)
    if soft_cap is not None:
        grad *= 1 - (logits / soft_cap) ** 2
    return loss, _best(logits), grad.astype(rows.dtype)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - pmax(logits.max(-1, keepdims=True), "vocab")
    return shifted - jnp.log(psum(jnp.exp(shifted).sum(-1, keepdims=True), "vocab"))


def _best(logits: Array) -> Array:
    """The number of the largest logit on all devices."""
    top = logits.max(-1)
    first = axis_index("vocab") * logits.shape[-1] + logits.argmax(-1)
    return -pmax(jnp.where(top == pmax(top, "vocab"), -first, jnp.iinfo(jnp.int32).min), "vocab")


def _backward(soft_cap: float | None, grad_hidden: Array, grads: tuple[Array, Any]) -> tuple[Any, ...]:
    return grad_hidden * grads[0].astype(grad_hidden.dtype), None, None, None


_distilled.defvjp(_with_gradient, _backward)
