"""Attention over a mask of positions and segments, never passed as a dense `T x T` array.

`attention(q, k, v, mask)` is the entry point and chooses the implementation. The mask says which keys a query may see
by position and segment; every implementation derives its own form of it. Here: a plain reference, and an implementation
for any device with a hand-written gradient that avoids transposed copies of large arrays (on two AVX-512 cores, 8 rows
of 256 positions, 4 layers, it saves 24 ms of a 116 ms step compared with differentiating the reference).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.platform import device_kind, platform
from lifecycle.core.typing import Array, Bool, Float
from lifecycle.kernels import cudnn
from lifecycle.kernels.mask import MASKED, OUT_NAME, Mask

# A CPU processes a causal row in runs of queries, each with the keys up to its end: at most MAX_RUNS runs (four compute
# 5/8 of the square), none shorter than MIN_RUN (runs of 32 positions cost more in small products than they save).
MAX_RUNS, MIN_RUN = 4, 64


def reference_attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    mask: Mask,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """The definition, head by head; all other implementations are tested against it."""
    groups = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5 if scale is None else scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    seen = mask.dense()[:, None]
    scores = jnp.where(seen, scores, MASKED)
    if sinks is not None:  # a key that every query sees and whose value is zero (gpt-oss)
        column = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1)[..., : k.shape[1]], 0.0)
    return jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v)


def attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    mask: Mask,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) with grouped heads (Ainslie et al. 2023).

    Scores and softmax are float32 whatever the inputs' dtype. A query that sees no key (padding) yields zeros. `scale`
    multiplies the scores (None: `Dk ** -0.5`); `soft_cap` bounds them, `cap * tanh(score / cap)` (Gemma 2, section 2);
    `sinks` are logits in each head's softmax without a value (gpt-oss).

    For rows (`mask.num_shards`), TPUs run our flash kernels if head dimensions are multiples of 128 lanes, else JAX's
    splash kernels (flash would pad). NVIDIA GPUs run cuDNN; what it does not support (`cudnn.limitations`) runs as
    `grouped_attention` while a layer's scores are below 1 GB per device, and raises `ConfigError` above. Everything
    else, caches included, runs as `grouped_attention`. The residuals of the backward pass are named `OUT_NAME` for
    remat policies.
    """
    # Not `jax.lax.platform_dependent`: its derivative keeps the residuals of every branch (here the `[T, T]` softmax of
    # the branch not taken, in addition to a kernel's log-sum-exp), and it does not know the chip, on which the tiles
    # depend.
    device, chip = platform(), device_kind()
    scale = float(q.shape[-1] ** -0.5) if scale is None else scale
    if mask.num_shards is not None and device == "tpu":  # imports that take a second and only TPUs need
        if q.shape[-1] % 128 == 0 and v.shape[-1] % 128 == 0:
            from lifecycle.kernels.flash import flash_attention
            from lifecycle.kernels.flash_blocks import blocks_of

            blocks = blocks_of(chip, max(q.shape[-1], v.shape[-1]))
            return flash_attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks, blocks=blocks)
        from lifecycle.kernels import splash

        blocks = splash.blocks_of(chip, max(q.shape[-1], v.shape[-1]))
        return splash.splash_attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks, blocks=blocks)
    if mask.num_shards is not None and device == "gpu":
        limitations = cudnn.limitations(q, k, v, soft_cap, sinks)
        if not limitations:
            return cudnn.cudnn_attention(q, k, v, mask, scale=scale)
        cudnn.require_small(q, k, limitations)
    return grouped_attention(q, k, v, mask, scale=scale, soft_cap=soft_cap, sinks=sinks)


def grouped_attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    mask: Mask,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Attention in plain products, for any mask on any device; the scores of all keys exist at once. A CPU skips the
    keys that no query of a run sees, which saves at least 9 of the quickstart's 217 core-milliseconds per step."""
    seen = mask.dense()
    if platform() != "cpu" or mask.num_shards != 1:
        return _at_once(q, k, v, seen, scale, soft_cap, sinks)
    seen = jax.lax.optimization_barrier(seen)  # computed once: otherwise every layer compares positions again
    runs = causal_runs(q.shape[1], mask.window)
    outs = [_at_once(q[:, i], k[:, j], v[:, j], seen[:, i, j], scale, soft_cap, sinks) for i, j in runs]
    return jnp.concatenate(outs, axis=1)


def causal_runs(length: int, window: int | None) -> list[tuple[slice, slice]]:
    """A row's queries in runs, each with the keys that any of its queries may see by position."""
    size = max(MIN_RUN, -(-length // MAX_RUNS))
    reach = length if window is None else window - 1
    ends = [(first, min(first + size, length)) for first in range(0, length, size)]
    return [(slice(first, end), slice(max(0, first - reach), end)) for first, end in ends]


def _at_once(
    q: Array, k: Array, v: Array, seen: Array, scale: float, soft_cap: float | None, sinks: Array | None
) -> Array:
    """All queries over all keys; `seen`, `[B, T, S]`, says which keys a query sees."""
    length, groups = q.shape[1], k.shape[2]
    seen = seen_by_rows(seen, q.shape[2] // groups)
    sinks = None if sinks is None else sinks_of_rows(sinks, groups, length)
    rows = as_group_rows(q * scale, groups)
    return from_group_rows(_grouped_attention(rows, k.swapaxes(1, 2), v.swapaxes(1, 2), seen, sinks, soft_cap), length)


def as_group_rows(q: Float[Array, "B T H D"], groups: int) -> Float[Array, "B K rows D"]:
    """The query heads of one group as additional rows of its key head, `[B, K, T*G, D]`: a single key head then needs
    no transposition at all."""
    batch, length, heads, head_dim = q.shape
    by_group = q.reshape(batch, length, groups, heads // groups, head_dim).swapaxes(1, 2)
    return by_group.reshape(batch, groups, -1, head_dim)


def from_group_rows(rows: Float[Array, "B K rows D"], length: int) -> Float[Array, "B T H D"]:
    """The reverse of `as_group_rows`."""
    batch, groups, _, head_dim = rows.shape
    return rows.reshape(batch, groups, length, -1, head_dim).swapaxes(1, 2).reshape(batch, length, -1, head_dim)


def seen_by_rows(seen: Bool[Array, "B T S"], per_group: int) -> Bool[Array, "B 1 rows S"]:
    """Which keys each row of `as_group_rows` sees."""
    return jnp.repeat(seen, per_group, axis=1)[:, None]


def sinks_of_rows(sinks: Float[Array, " H"], groups: int, length: int) -> Float[Array, "K rows 1"]:
    """The sink of each row of `as_group_rows`, in float32."""
    return jnp.tile(sinks.astype(jnp.float32).reshape(groups, 1, -1), (1, length, 1)).reshape(groups, -1, 1)


def group_product(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    """A product per (row, key head), accumulated in float32; leading two dimensions are the batch."""
    dims = (((contract_a,), (contract_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _grouped_attention(q: Array, k: Array, v: Array, seen: Array, sinks: Array | None, soft_cap: float | None) -> Array:
    return _attend(q, k, v, seen, sinks, soft_cap)[0]


def _attend(
    q: Array, k: Array, v: Array, seen: Array, sinks: Array | None, soft_cap: float | None
) -> tuple[Array, tuple[Array | None, ...]]:
    scores, slope = group_product(q, k, 3, 3), None
    if soft_cap is not None:
        bounded = jnp.tanh(scores / soft_cap)
        scores, slope = soft_cap * bounded, 1 - bounded * bounded
    scores = jnp.where(seen, scores, MASKED)
    m = scores.max(-1, keepdims=True)
    has_key = m > MASKED
    m = m if sinks is None else jnp.maximum(m, sinks)
    p = jnp.exp(scores - m)
    l, sink_weight = p.sum(-1, keepdims=True), None
    if sinks is not None:
        sink_weight = jnp.exp(sinks - m)
        l = l + sink_weight
        sink_weight = sink_weight / l
    p = (p * jnp.where(has_key, 1 / l, 0.0)).astype(v.dtype)
    out = checkpoint_name(group_product(p, v, 3, 2).astype(v.dtype), OUT_NAME)
    return out, (q, k, v, p, out, slope, sink_weight)


def _attend_gradient(
    soft_cap: float | None, saved: tuple[Array, ...], grad: Array
) -> tuple[Array, Array, Array, None, Array | None]:
    q, k, v, p, out, slope, sink_weight = saved
    delta = (grad * out).sum(-1, keepdims=True, dtype=jnp.float32)
    ds = p * (group_product(grad, v, 3, 3) - delta)
    if soft_cap is not None:
        ds *= slope
    ds = ds.astype(q.dtype)
    grad_v = group_product(grad, p, 2, 2).swapaxes(2, 3).astype(v.dtype)
    grad_q = group_product(ds, k, 3, 2).astype(q.dtype)
    grad_k = group_product(q, ds, 2, 2).swapaxes(2, 3).astype(k.dtype)
    grad_sinks = None if sink_weight is None else -(sink_weight * delta).sum(0)
    return grad_q, grad_k, grad_v, None, grad_sinks


_grouped_attention.defvjp(_attend, _attend_gradient)
