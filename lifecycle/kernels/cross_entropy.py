"""The output projection and its log-probabilities in blocks: logits of shape `[B, T, V]` never exist.

`token_logprobs(hidden, head, targets)` gives each target's log-probability. `cross_entropy` gives their weighted sum
and computes the gradient in the forward pass, block by block, while the logits are at hand: three matmuls in all and
no recomputation, at the price of one `[V, D]` accumulator (the idea of Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models"). Blocks cut the time axis, so a batch axis that is sharded stays so.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int

# Positions in a block: 256 x 4096 logits, 4 MB in float32, stay in a CPU's last-level cache; 1,024 are 10 % slower.
BLOCK = 256


def project(hidden: Float[Array, "*rows D"], head: Float[Array, "V D"]) -> Float[Array, "*rows V"]:
    """Logits in float32, contracting `head` as it lies (never `hidden @ head.T`: 8 times slower for one row on CPU)."""
    dims = (((hidden.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(hidden, head, dims, preferred_element_type=jnp.float32)


def _blocked(x: Array) -> Array:
    """`[B, T, ...]` to `[blocks, B, t, ...]` with about `BLOCK` positions in each; the end is padded with zeros."""
    batch, length = x.shape[:2]
    size = min(length, max(1, BLOCK // batch))
    num = -(-length // size)
    x = jnp.pad(x, [(0, 0), (0, num * size - length)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(batch, num, size, *x.shape[2:]).swapaxes(0, 1)


def _unblocked(blocks: Array, length: int) -> Array:
    num, batch, size = blocks.shape[:3]
    return blocks.swapaxes(0, 1).reshape(batch, num * size, *blocks.shape[3:])[:, :length]


@jax.checkpoint  # the backward pass makes a block's logits again rather than keep all blocks' logits
def _block_logprobs(hidden: Array, head: Array, targets: Array) -> Array:
    logits = project(hidden, head)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logprobs(
    hidden: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log-probability of each target; differentiable in `hidden` and `head`."""
    blocks = (_blocked(hidden), _blocked(targets))
    found = jax.lax.map(lambda block: _block_logprobs(block[0], head, block[1]), blocks)
    return _unblocked(found, targets.shape[1])


@jax.custom_vjp
def cross_entropy(
    hidden: Float[Array, "B T D"], head: Float[Array, "V D"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> Float[Array, ""]:
    """`sum(weights * -log p(target))`: a sum, not a mean, so that parts of a batch add up exactly.

    Differentiable in `hidden` and `head`; targets and weights are data.
    """
    return -(token_logprobs(hidden, head, targets) * weights).sum()


def _block_loss(hidden: Array, head: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """One block's loss and the gradient of it in the logits."""
    logits = project(hidden, head)
    top = logits.max(-1, keepdims=True)
    exps = jnp.exp(logits - top)
    total = exps.sum(-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    weights = weights[..., None]
    is_target = jnp.arange(head.shape[0]) == targets[..., None]
    grad = exps * (weights / total) - jnp.where(is_target, weights, 0.0)
    return (weights * (jnp.log(total) + top - chosen)).sum(), grad.astype(hidden.dtype)


def _cross_entropy(hidden: Array, head: Array, targets: Array, weights: Array) -> tuple[Array, tuple[Array, ...]]:
    def step(carry: tuple[Array, Array], block: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        loss, grad_head = carry
        rows, *rest = (x.reshape(-1, *x.shape[2:]) for x in block)  # two dimensions: XLA's CPU product copies for three
        block_loss, grad = _block_loss(rows, head, *rest)
        dims = (((0,), (0,)), ((), ()))
        grad_head += jax.lax.dot_general(rows, grad, dims, preferred_element_type=jnp.float32)
        return (loss + block_loss, grad_head), (grad @ head).astype(hidden.dtype).reshape(block[0].shape)

    # [D, V] while it is summed up: XLA's CPU product transposes its left side, and `rows` is the smaller one
    zero = (jnp.zeros((), jnp.float32), jnp.zeros(head.shape[::-1], jnp.float32))
    (loss, grad_head), grad_blocks = jax.lax.scan(step, zero, tuple(map(_blocked, (hidden, targets, weights))))
    return loss, (_unblocked(grad_blocks, hidden.shape[1]), grad_head.T.astype(head.dtype))


def _cross_entropy_gradient(saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, None, None]:
    grad_hidden, grad_head = saved
    return (grad_hidden * grad).astype(grad_hidden.dtype), (grad_head * grad).astype(grad_head.dtype), None, None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)
