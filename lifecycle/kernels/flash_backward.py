"""The gradients of flash attention in one kernel: five products per pair of blocks instead of seven in two kernels.

Key blocks are processed one by one, with their gradients in VMEM. The gradients of all queries of the group's heads
stay there, too (float32, `[H/K, T, Dk]`: 16.8 MB for Llama-3.1-8B's four heads and 8,192 positions), and go to memory
only when they are complete. Source: Dao 2023, "FlashAttention-2", algorithm 2, with the loops' state in VMEM instead of
atomic additions.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels import flash_blocks as fb
from lifecycle.kernels.flash_blocks import Plan, Segments


def backward(
    plan: Plan,
    device: Int[Array, ""] | int,
    q: Float[Array, "B T H*Dk"],
    k: Float[Array, "B S K*Dk"],
    v: Float[Array, "B S K*Dv"],
    segments: Segments,
    out: Float[Array, "B T H*Dv"],
    lse: Float[Array, "B H 1 T"],
    grad: Float[Array, "B T H*Dv"],
) -> tuple[Float[Array, "B T H*Dk"], Float[Array, "B S K*Dk"], Float[Array, "B S K*Dv"], Float[Array, "B H 1 T"]]:
    """Gradients of `q`, `k`, `v`, and each query's `sum(out * grad)`.

    Queries whose gradients do not fit into VMEM are processed in several runs; the runs' gradients of keys and values
    are then summed in float32.
    """
    bytes_a_block = plan.per_group * plan.q.block * plan.key_dim * 4
    most = max(1, plan.blocks.dq_bytes // bytes_a_block)
    runs = -(-plan.num_q // most)
    if runs == 1:
        return _run(plan, device, (0, plan.num_q), q, k, v, segments, out, lse, grad, k.dtype)
    parts = []
    for run in range(runs):
        blocks = run * plan.num_q // runs, (run + 1) * plan.num_q // runs
        cut = slice(blocks[0] * plan.q.block, blocks[1] * plan.q.block)
        ids = segments and (segments[0][:, cut], segments[1])
        inputs = q[:, cut], k, v, ids, out[:, cut], lse[..., cut], grad[:, cut]
        parts.append(_run(plan, device, blocks, *inputs, jnp.dtype(jnp.float32)))
    dq, dk, dv, delta = zip(*parts, strict=True)
    dk, dv = (jnp.stack(x).sum(0).astype(k.dtype) for x in (dk, dv))
    return jnp.concatenate(dq, 1), dk, dv, jnp.concatenate(delta, 3)


def _run(
    plan: Plan, device: Array | int, blocks: tuple[int, int], q: Array, k: Array, v: Array,
    segments: Segments, out: Array, lse: Array, grad: Array, dtype: jnp.dtype,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    batch, length, group = q.shape[0], q.shape[1], plan.per_group
    steps = jnp.asarray(fb.backward_steps(plan, blocks))[device]
    first = jnp.asarray(fb.starts(plan)[:, blocks[0] : blocks[1]])[device]
    ids = [x[:, None] for x in segments] if segments else [None, None]
    arguments = [steps, first, *fb.spans(plan, segments), q, k, v, *ids, out, lse, grad]
    read, written = _blocks(plan, length, segments is not None)
    dq, dk, dv, delta = pl.pallas_call(
        partial(_kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(batch, plan.num_kv_heads, steps.shape[-1]),
            in_specs=read,
            out_specs=written,
            scratch_shapes=[
                pltpu.VMEM((group, length, plan.key_dim), jnp.float32),
                pltpu.VMEM((plan.kv.block, plan.key_dim), jnp.float32),
                pltpu.VMEM((plan.kv.block, plan.value_dim), jnp.float32),
                pltpu.VMEM((plan.kv.block, plan.value_dim), v.dtype),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(k.shape, dtype),
            jax.ShapeDtypeStruct(v.shape, dtype),
            jax.ShapeDtypeStruct((batch, plan.num_heads, 1, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            # `out` and `v` may be slices of saved arrays, which the kernel then reads in place instead of from copies.
            # For operands that it reads tile by tile the compiler fails (libtpu 0.0.50.1), so `v`'s block is copied.
            allow_input_fusion=[x is out or x is v for x in arguments if x is not None],
            vmem_limit_bytes=plan.blocks.vmem_bytes,
        ),
        name="flash_bwd",
        interpret=plan.interpret,
    )(*arguments)
    return dq, dk, dv, delta


def _blocks(plan: Plan, length: int, has_segments: bool) -> tuple[list[Any], list[Any]]:
    """The blocks of a step that are read and written; those of a head are columns of the flat layout."""
    (bq, bkv), group = (plan.q.block, plan.kv.block), plan.per_group

    def query(b, h, s, steps, *_):
        return b, steps[fb.QUERY, s], h * group + steps[fb.HEAD, s]

    def key(b, h, s, steps, *_):
        return b, steps[fb.KEY, s], h

    def done(b, h, s, steps, *_):
        return b, steps[fb.DONE_QUERY, s], h * group + steps[fb.DONE_HEAD, s]

    def sums(b, h, s, steps, *_):
        return b, h * group + steps[fb.HEAD, s], 0, steps[fb.QUERY, s]

    queries, keys, values = (None, bq, plan.key_dim), (None, bkv, plan.key_dim), (None, bkv, plan.value_dim)
    outputs = (None, bq, plan.value_dim)
    read = [
        pl.BlockSpec(queries, query),
        pl.BlockSpec(keys, key),
        pl.BlockSpec(values, key),
        pl.BlockSpec((None, 1, bq), lambda b, h, s, steps, *_: (b, 0, steps[fb.QUERY, s])) if has_segments else None,
        pl.BlockSpec((None, 1, bkv), lambda b, h, s, steps, *_: (b, 0, steps[fb.KEY, s])) if has_segments else None,
        pl.BlockSpec(outputs, query),
        pl.BlockSpec((None, None, 1, bq), sums),
        pl.BlockSpec(outputs, query),
    ]
    written = [
        pl.BlockSpec(queries, done),
        pl.BlockSpec(keys, key),
        pl.BlockSpec(values, key),
        pl.BlockSpec((None, group, 1, length), lambda b, h, *_: (b, h, 0, 0)),
    ]
    return read, written


def _kernel(
    plan, steps, starts, q_spans, k_spans, q, k, v, q_ids, k_ids, out, lse, grad, dq, dk, dv, delta, dq_acc, dk_acc,
    dv_acc, values,
):  # refs  # fmt: skip
    """One step: a key block against a query block of one of the group's heads; keys along the sublanes."""
    query, head, flags = (steps[i, pl.program_id(2)] for i in (fb.QUERY, fb.HEAD, fb.FLAGS))
    here = fb.rows(query, plan.q.block)

    @pl.when(flags & fb.FIRST != 0)
    def _begin_keys():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)
        values[...] = v[...]

    @pl.when(flags & fb.NEW != 0)
    def _begin_queries():
        dq_acc[head, here, :] = jnp.zeros((plan.q.block, plan.key_dim), jnp.float32)
        products = out[...].astype(jnp.float32) * grad[...].astype(jnp.float32)
        delta[head, :, here] = products.T.sum(0, keepdims=True)

    def add(i: Array, j: Array, distance: Array, is_masked: bool):
        queries, keys = (fb.rows(n, size) for n, size in zip((i, j), plan.tiles, strict=True))
        own = pl.ds(pl.multiple_of(query * plan.q.block + i * plan.tiles[0], plan.tiles[0]), plan.tiles[0])
        scores, slope = fb.bounded(fb.times_rows(k[keys, :], q[queries, :]), plan.scale, plan.soft_cap)
        if is_masked:
            ids = (None, None) if q_ids is None else (q_ids[:, queries], k_ids[:, keys])
            scores = fb.masked(plan, scores, 1, distance, *ids)
        p = jnp.exp2(scores - lse[:, queries])
        dv_acc[keys, :] += jnp.dot(p.astype(grad.dtype), grad[queries, :], preferred_element_type=jnp.float32)
        ds = p * (fb.times_rows(values[keys, :], grad[queries, :]) - delta[head, :, own])
        ds = (ds if slope is None else ds * slope).astype(q.dtype)
        dk_acc[keys, :] += jnp.dot(ds, q[queries, :], preferred_element_type=jnp.float32)
        dq_acc[head, own, :] += jax.lax.dot_general(
            ds, k[keys, :], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )

    fb.each_tile(plan, steps, starts, q_spans, k_spans, add)

    @pl.when(flags & fb.DONE != 0)
    def _end_queries():
        dq[...] = (dq_acc[head, here, :] * plan.scale).astype(dq.dtype)

    @pl.when(flags & fb.LAST != 0)
    def _end_keys():
        dk[...] = (dk_acc[...] * plan.scale).astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)
