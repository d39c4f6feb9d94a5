"""Flash attention over a row on TPUs (Dao 2023, "FlashAttention-2"), in the model's own layout.

JAX's splash kernels take heads before positions, `[H, T, Dh]`; the projections have `[B, T, H * Dh]`. Here blocks are
cut from that layout, a head being a column of blocks, so nothing is transposed in memory; the log-sum-exp and the
segments are small arrays with positions along the lanes. What must hold: every query sees at least one key; in a row it
sees itself.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float
from lifecycle.kernels import flash_blocks as fb
from lifecycle.kernels.flash_backward import backward
from lifecycle.kernels.flash_blocks import LOG2_E, FlashBlocks, Plan, Segments
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED, OUT_NAME, Mask
from lifecycle.parallel import collectives


def flash_attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    mask: Mask,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    blocks: FlashBlocks,
    interpret: bool = False,
) -> Float[Array, "B T H Dv"]:
    """`attention` for a mask with `num_shards`.

    With more than one shard, call it inside a manual `shard_map`. Lengths are padded to a multiple of the blocks and
    heads to a multiple of 128 lanes, both by copies. `interpret` runs the kernels' Python on a CPU.
    """
    assert mask.num_shards is not None, "the kernels need static positions (mask.num_shards)"
    batch, length, num_heads, _ = q.shape
    assert length * mask.num_shards == k.shape[1]
    lanes = [-(-x.shape[-1] // LANES) * LANES for x in (k, v)]
    plan = Plan(
        num_heads, k.shape[2], lanes[0], lanes[1], k.shape[1], mask.num_shards, mask.window, scale, soft_cap, blocks,
        interpret,
    )  # fmt: skip
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = _queries(mask.query_segments, plan, "edge"), _filled(mask.key_segments, plan.kv.length)
    flat_q = _queries(_flat(q, plan.key_dim), plan, "constant")
    flat_k, flat_v = (_filled(_flat(x, dim), plan.kv.length) for x, dim in ((k, lanes[0]), (v, lanes[1])))
    out = _flash(plan, flat_q, flat_k, flat_v, segments, sinks)
    out = out.reshape(batch, plan.chunks, plan.q.length, num_heads, lanes[1])
    return out[:, :, : plan.chunk, :, : v.shape[-1]].reshape(batch, length, num_heads, v.shape[-1])


def _flat(x: Array, lanes: int) -> Array:
    """`[B, T, H * lanes]`: free if head dimensions are multiples of the lanes."""
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, lanes - x.shape[-1])])
    return x.reshape(*x.shape[:2], -1)


def _filled(x: Array, length: int, mode: str = "constant") -> Array:
    """`[B, T, ...]` padded to `length`."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _queries(x: Array, plan: Plan, mode: str) -> Array:
    """The chunks of `[B, T, ...]`, each padded to a multiple of the blocks."""
    pieces = _filled(x.reshape(-1, plan.chunk, *x.shape[2:]), plan.q.length, mode)
    return pieces.reshape(x.shape[0], -1, *x.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(plan: Plan, q: Array, k: Array, v: Array, segments: Segments, sinks: Array | None) -> Array:
    return _forward(plan, q, k, v, segments, sinks)[0]


def _flash_forward(plan: Plan, q: Array, k: Array, v: Array, segments: Segments, sinks: Array | None) -> tuple:
    out, lse = (checkpoint_name(x, OUT_NAME) for x in _forward(plan, q, k, v, segments, sinks))
    return out, (q, k, v, segments, sinks, out, lse)


def _flash_backward(plan: Plan, saved: tuple, grad: Array) -> tuple:
    q, k, v, segments, sinks, out, lse = saved
    dq, dk, dv, delta = backward(plan, _device(plan), q, k, v, segments, out, lse, grad)
    dsinks = None
    if sinks is not None:
        share = jnp.exp2(sinks.astype(jnp.float32)[:, None, None] * LOG2_E - lse)
        dsinks = -(share * delta).sum((0, 2, 3)).astype(sinks.dtype)
    return dq, dk, dv, None, dsinks


_flash.defvjp(_flash_forward, _flash_backward)


def _device(plan: Plan) -> Array | int:
    return collectives.axis_index("seq") if plan.num_shards > 1 else 0


def _forward(
    plan: Plan, q: Array, k: Array, v: Array, segments: Segments, sinks: Array | None
) -> tuple[Float[Array, "B T H*Dv"], Float[Array, "B H 1 T"]]:
    """Output, and each query's log-sum-exp in base 2."""
    batch, (bq, bkv) = q.shape[0], (plan.q.block, plan.kv.block)
    steps = jnp.asarray(fb.forward_steps(plan))[_device(plan)]
    ids = [x[:, None] for x in segments] if segments else [None, None]
    prefetch = [steps, jnp.asarray(fb.starts(plan))[_device(plan)]]
    prefetch += fb.spans(plan, segments)
    group = plan.per_group

    def at(which: int, heads: int):  # a block of positions, in the column shared by `heads` query heads
        return lambda b, h, s, steps, *_: (b, steps[which, s], h // heads)

    def along(which: int):  # the same for an array with positions along the lanes
        return lambda b, h, s, steps, *_: (b, 0, steps[which, s])

    specs = [
        pl.BlockSpec((None, bq, plan.key_dim), at(fb.QUERY, 1)),
        pl.BlockSpec((None, bkv, plan.key_dim), at(fb.KEY, group)),
        pl.BlockSpec((None, bkv, plan.value_dim), at(fb.KEY, group)),
        pl.BlockSpec((None, 1, bq), along(fb.QUERY)) if segments else None,
        pl.BlockSpec((None, 1, bkv), along(fb.KEY)) if segments else None,
        None if sinks is None else pl.BlockSpec(memory_space=pltpu.SMEM),
    ]
    return pl.pallas_call(
        partial(_forward_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetch),
            grid=(batch, plan.num_heads, steps.shape[-1]),
            in_specs=specs,
            out_specs=[
                pl.BlockSpec((None, bq, plan.value_dim), at(fb.QUERY, 1)),
                pl.BlockSpec((None, None, 1, bq), lambda b, h, s, steps, *_: (b, h, 0, steps[fb.QUERY, s])),
            ],
            scratch_shapes=[pltpu.VMEM((bq, width), jnp.float32) for width in (LANES, LANES, plan.value_dim)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, q.shape[1], plan.num_heads * plan.value_dim), v.dtype),
            jax.ShapeDtypeStruct((batch, plan.num_heads, 1, q.shape[1]), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=plan.blocks.vmem_bytes
        ),
        name="flash_fwd",
        interpret=plan.interpret,
    )(*prefetch, q, k, v, *ids, None if sinks is None else sinks.astype(jnp.float32))


def _forward_kernel(plan, steps, starts, q_spans, k_spans, q, k, v, q_ids, k_ids, sinks, out, lse, m, l, acc):  # refs
    """One step: a query block of one head against a key block. The running maximum `m`, sum `l` (by lane until the end)
    and output `acc` are as in the paper."""
    head, flags = pl.program_id(1), steps[fb.FLAGS, pl.program_id(2)]

    @pl.when(flags & fb.FIRST != 0)
    def _begin():
        start = MASKED if sinks is None else sinks[head] * LOG2_E
        m[...] = jnp.full_like(m, start)
        lane = jax.lax.broadcasted_iota(jnp.int32, l.shape, 1)
        l[...] = jnp.where(lane == 0, 0.0 if sinks is None else 1.0, 0.0)
        acc[...] = jnp.zeros_like(acc)

    def add(i: Array, j: Array, distance: Array, is_masked: bool):
        queries, keys = (fb.rows(n, size) for n, size in zip((i, j), plan.tiles, strict=True))
        scores, _ = fb.bounded(fb.times_rows(q[queries, :], k[keys, :]), plan.scale, plan.soft_cap)
        if is_masked:
            ids = (None, None) if q_ids is None else (q_ids[:, queries], k_ids[:, keys])
            scores = fb.masked(plan, scores, 0, distance, *ids)
        _add(scores, v[keys, :], *(x.at[queries, :] for x in (m, l, acc)))

    fb.each_tile(plan, steps, starts, q_spans, k_spans, add)

    @pl.when(flags & fb.LAST != 0)
    def _end():
        l_sum = _safe(l[...].sum(-1, keepdims=True))
        out[...] = (acc[...] * (1 / l_sum)).astype(out.dtype)
        lse[...] = m[...].T[:1] + jnp.log2(_safe(l[...].T.sum(0, keepdims=True)))


def _safe(l: Array) -> Array:
    """`l` with zeros replaced by 1: padding may see no key at all."""
    return jnp.where(l == 0, 1.0, l)


def _add(scores: Array, values: Array, m, l, acc) -> None:
    """Adds a tile of keys to the running maximum, sum and output."""
    m_prev = m[...]
    m_next = jnp.maximum(m_prev, scores.max(-1, keepdims=True))
    p = jnp.exp2(scores - _wide(m_next, scores.shape[1]))
    alpha = jnp.exp2(m_prev - m_next)
    m[...] = m_next
    by_lane = sum(p[:, i : i + LANES] for i in range(0, p.shape[1], LANES))
    l[...] = l[...] * alpha + by_lane
    product = jnp.dot(p.astype(values.dtype), values, preferred_element_type=jnp.float32)
    acc[...] = acc[...] * _wide(alpha, values.shape[1]) + product


def _wide(x: Array, width: int) -> Array:
    return jnp.tile(x, (1, width // LANES))
