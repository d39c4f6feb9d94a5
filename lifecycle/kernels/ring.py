"""Ring attention (Liu et al. 2023): keys and values are passed around the context axis; no device has a full row.

Each device keeps its queries and merges each shard's scores into a running maximum, sum and output (the online softmax
of Milakov and Gimelshein 2018); the backward pass goes around once more and accumulates the keys' gradients, which end
on their own device. Products are plain: the scores of half the queries against one block of keys exist at once. The
result depends on positions and segments only; the load-balanced order (`row_order`) makes the devices' work equal,
because fully masked blocks are skipped.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.mask import MASKED, OUT_NAME, Mask
from lifecycle.parallel import collectives

BLOCK = 512  # keys at once, at most


class RingSettings(NamedTuple):
    """The static arguments."""

    axes: tuple[str, ...]
    num_shards: int
    window: int | None
    soft_cap: float | None


class KVShard(NamedTuple):
    """Keys and values of some positions, passed around the ring."""

    k: Float[Array, "B K S Dk"]
    v: Float[Array, "B K S Dv"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"]


class Softmax(NamedTuple):
    """The running softmax of query rows over the keys so far, in float32."""

    m: Float[Array, "B K R 1"]  # the largest score
    l: Float[Array, "B K R 1"]  # the sum of exponentials
    acc: Float[Array, "B K R Dv"]  # the output, to be divided by `l`


class Rows(NamedTuple):
    """Half of a device's queries, a group's heads as additional rows of their key head."""

    q: Float[Array, "B K R Dk"]
    positions: Int[Array, "B R"]
    segments: Int[Array, "B R"]


def ring_attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B T K Dk"],
    v: Float[Array, "B T K Dv"],
    mask: Mask,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """`attention` inside a manual `shard_map`, of this device's queries over all devices' keys.

    `k`, `v` and `mask` are this device's shard of the row: its keys are at its queries' positions, so every query sees
    at least itself. Sums are float32 whatever the inputs' dtype. Outside a mesh it is attention over the shard.
    """
    batch, length, heads, head_dim = q.shape
    assert length % 2 == 0, "a load-balanced shard of a row is two chunks of equal length"
    groups = k.shape[2]
    q = q * (head_dim**-0.5 if scale is None else scale)
    rows = q.reshape(batch, length, groups, -1, head_dim).swapaxes(1, 2).reshape(batch, groups, -1, head_dim)
    if sinks is not None:
        sinks = jnp.tile(sinks.astype(jnp.float32).reshape(groups, 1, -1), (1, length, 1)).reshape(groups, -1, 1)
    segments = mask.key_segments if mask.key_segments is not None else jnp.zeros_like(mask.key_positions)
    part = KVShard(k.swapaxes(1, 2), v.swapaxes(1, 2), mask.key_positions, segments)
    settings = RingSettings(collectives.axes_of("seq"), collectives.axis_size("seq"), mask.window, soft_cap)
    out = _ring(rows, part, sinks, settings)
    out = out.reshape(batch, groups, length, -1, v.shape[-1]).swapaxes(1, 2)
    return out.reshape(batch, length, heads, v.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ring(q: Array, part: KVShard, sinks: Array | None, settings: RingSettings) -> Array:
    return _forward(q, part, sinks, settings)[0]


def _forward(q: Array, part: KVShard, sinks: Array | None, settings: RingSettings) -> tuple[Array, tuple]:
    """One pass around the ring; saved for the gradient: the inputs, the output and each row's log-sum-exp."""
    halves = _halves(q, part)
    sink_halves = (None, None) if sinks is None else _split(sinks)
    start = tuple(_no_keys(rows, part.v, half) for rows, half in zip(halves, sink_halves, strict=True))

    def hop(carry: tuple[KVShard, tuple[Softmax, ...]], _: None) -> tuple[tuple[KVShard, tuple[Softmax, ...]], None]:
        part, softmaxes = carry
        coming = _next(part, settings)  # in flight while this part is used
        blocks = _blocks(part)
        step = partial(_add_keys, settings=settings)
        softmaxes = tuple(
            jax.lax.scan(partial(step, rows), so_far, blocks)[0] for rows, so_far in zip(halves, softmaxes, strict=True)
        )
        return (coming, softmaxes), None

    (_, ended), _ = jax.lax.scan(hop, (part, start), None, length=settings.num_shards)
    m, l, acc = (jnp.concatenate(x, axis=2) for x in zip(*ended, strict=True))
    out = checkpoint_name((acc / l).astype(q.dtype), OUT_NAME)
    lse = checkpoint_name(m + jnp.log(l), OUT_NAME)
    return out, (q, part, sinks, out, lse)


def _gradient(settings: RingSettings, saved: tuple, grad: Array) -> tuple[Array, KVShard, Array | None]:
    """One pass around the ring with the keys' gradients, which are back on their own device after as many hops as there
    are devices."""
    q, part, sinks, out, lse = saved
    delta = (grad * out).sum(-1, keepdims=True, dtype=jnp.float32)
    halves = tuple(zip(_halves(q, part), *(_split(x) for x in (grad, delta, lse)), strict=True))
    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (part.k, part.v)]
    start = part, zeros, tuple(jnp.zeros(half[0].q.shape, jnp.float32) for half in halves)

    def hop(carry: tuple, _: None) -> tuple[tuple, None]:
        part, (grad_k, grad_v), grad_q = carry
        coming = _next(part, settings)
        blocks = (_blocks(part), _block(grad_k), _block(grad_v))
        sums = []
        for half, so_far in zip(halves, grad_q, strict=True):
            so_far, (k_blocks, v_blocks) = jax.lax.scan(
                partial(_add_gradients, half, settings=settings), so_far, blocks
            )
            blocks = (blocks[0], k_blocks, v_blocks)
            sums.append(so_far)
        on_board = _next([_unblock(x) for x in blocks[1:]], settings)
        return (coming, on_board, tuple(sums)), None

    (_, (grad_k, grad_v), grad_q), _ = jax.lax.scan(hop, start, None, length=settings.num_shards)
    grad_part = KVShard(grad_k.astype(part.k.dtype), grad_v.astype(part.v.dtype), None, None)  # type: ignore[arg-type]
    grad_sinks = None if sinks is None else -(jnp.exp(sinks - lse) * delta).sum(0)
    return jnp.concatenate(grad_q, axis=2).astype(q.dtype), grad_part, grad_sinks


_ring.defvjp(_forward, _gradient)


def _add_keys(rows: Rows, so_far: Softmax, keys: KVShard, *, settings: RingSettings) -> tuple[Softmax, None]:
    """The rows' softmax with one more block of keys."""

    def add() -> Softmax:
        scores, seen, _ = _scores(rows, keys, settings)
        m = jnp.maximum(so_far.m, scores.max(-1, keepdims=True))
        p = jnp.where(seen, jnp.exp(scores - m), 0)
        alpha = jnp.exp(so_far.m - m)
        l = so_far.l * alpha + p.sum(-1, keepdims=True)
        return Softmax(m, l, so_far.acc * alpha + _matmul(p.astype(keys.v.dtype), keys.v, 3, 2))

    return jax.lax.cond(_may_see(rows, keys, settings.window), add, lambda: so_far), None


def _add_gradients(
    half: tuple[Rows, Array, Array, Array],
    grad_q: Array,
    block: tuple[KVShard, Array, Array],
    *,
    settings: RingSettings,
) -> tuple[Array, tuple[Array, Array]]:
    """The gradients so far, plus those of half of the queries and one block of keys."""
    rows, grad, delta, lse = half
    keys, grad_k, grad_v = block

    def add() -> tuple[Array, tuple[Array, Array]]:
        scores, seen, slope = _scores(rows, keys, settings)
        p = jnp.where(seen, jnp.exp(scores - lse), 0)
        ds = p * (_matmul(grad, keys.v, 3, 3) - delta)
        ds = (ds if slope is None else ds * slope).astype(rows.q.dtype)
        more_k = grad_k + _matmul(ds, rows.q, 2, 2)
        more_v = grad_v + _matmul(p.astype(grad.dtype), grad, 2, 2)
        return grad_q + _matmul(ds, keys.k, 3, 2), (more_k, more_v)

    return jax.lax.cond(_may_see(rows, keys, settings.window), add, lambda: (grad_q, (grad_k, grad_v)))


def _scores(rows: Rows, keys: KVShard, settings: RingSettings) -> tuple[Array, Array, Array | None]:
    """Scores `[B, K, R, S]` in float32, which of them are seen, and the soft cap's slope."""
    scores, slope = _matmul(rows.q, keys.k, 3, 3), None
    if settings.soft_cap is not None:
        bounded = jnp.tanh(scores / settings.soft_cap)
        scores, slope = settings.soft_cap * bounded, 1 - bounded * bounded
    seen = Mask(rows.positions, keys.positions, rows.segments, keys.segments, settings.window).dense()[:, None]
    return jnp.where(seen, scores, MASKED), seen, slope


def _may_see(rows: Rows, keys: KVShard, window: int | None) -> Array:
    """Whether the positions let any row see any key."""
    may = rows.positions.max() >= keys.positions.min()
    return may if window is None else may & (keys.positions.max() > rows.positions.min() - window)


def _no_keys(rows: Rows, v: Array, sinks: Array | None) -> Softmax:
    """The softmax before any key; a sink contributes to the denominator from the start, with no value."""
    shape = (*rows.q.shape[:3], 1)
    out = jnp.zeros((*shape[:3], v.shape[-1]), jnp.float32)
    if sinks is None:
        return Softmax(jnp.full(shape, MASKED), jnp.zeros(shape), out)
    return Softmax(jnp.broadcast_to(sinks, shape), jnp.ones(shape), out)


def _halves(q: Array, part: KVShard) -> tuple[Rows, ...]:
    per_group = q.shape[2] // part.positions.shape[1]
    positions, segments = (jnp.repeat(x, per_group, axis=1) for x in (part.positions, part.segments))
    return tuple(map(Rows, _split(q), _split(positions, 1), _split(segments, 1)))


def _split(x: Array, axis: int = -2) -> tuple[Array, ...]:
    """Both halves of the rows."""
    return tuple(jnp.split(x, 2, axis=axis))


def _next[T](tree: T, settings: RingSettings) -> T:
    """The previous device's `tree`."""
    if settings.num_shards == 1:
        return tree
    hops = [(i, (i + 1) % settings.num_shards) for i in range(settings.num_shards)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, settings.axes, hops), tree)


def _blocks(part: KVShard) -> KVShard:
    return KVShard(_block(part.k), _block(part.v), _block(part.positions, 1), _block(part.segments, 1))


def _block(x: Array, axis: int = 2) -> Array:
    """Splits the keys' axis into blocks, as the leading axis; both chunks of a load-balanced shard into equal
    blocks."""
    half = x.shape[axis] // 2
    size = max(size for size in range(1, min(BLOCK, half) + 1) if half % size == 0)
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _unblock(blocks: Array) -> Array:
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _matmul(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    """A product per (row, key head), accumulated in float32."""
    dims = (((contract_a,), (contract_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
