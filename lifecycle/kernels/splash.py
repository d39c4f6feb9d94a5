"""Attention over a row on TPUs: JAX's splash kernels (block-sparse flash attention, Dao 2023) with our mask.

The library derives its schedule of blocks from a dense mask, block by block; here it is derived from the positions,
which is exact for a causal window, takes no time at 131,072 positions, and supports a device with a load-balanced shard
of the queries. What must hold: every query sees at least one key; in a row it sees itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
    DEFAULT_MASK_VALUE,
    SplashAttentionKernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.flash_blocks import PaddedLength, padded_length
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import OUT_NAME, Mask
from lifecycle.parallel import collectives
from lifecycle.parallel.placement import row_order


@dataclass(frozen=True)
class SplashBlocks:
    """A kernel's largest blocks, in positions."""

    q: int
    kv: int
    compute: int  # the part of a key block that is multiplied at once


def blocks_of(chip: str, head_dim: int) -> SplashBlocks:
    """Block sizes for a chip (`core.platform.kind_of` names it).

    v6e and tpu7x have room for 2,048 (used there by public MaxText recipes) with heads of up to 128; with 256, tpu7x's
    compiler runs out of VMEM, as those of v4, v5e and v5p do with 128 under their default limit.

    No chip runs JAX's one-kernel backward pass: it saves two of seven products, but writes one dq per key block and
    adds them up: for Llama-3.1-8B on v5p, 0.6 GB and 6.5 M cycles (3.7 ms) a layer.
    """
    if chip in ("TPU v6 lite", "TPU7x") and head_dim <= 128:
        return SplashBlocks(2048, 2048, 1024)
    return SplashBlocks(1024, 1024, 512) if head_dim <= 256 else SplashBlocks(512, 512, 256)


class Schedule(NamedTuple):
    """Which block of the other side each step of a kernel's grid loads, and whether it computes; one per device."""

    block: np.ndarray  # [shards, 1, query blocks, key steps], or [shards, 1, query steps, key blocks] for dk and dv
    runs: np.ndarray


def splash_attention(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    mask: Mask,
    *,
    scale: float,
    soft_cap: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    blocks: SplashBlocks,
    interpret: bool = False,
) -> Float[Array, "B T H Dv"]:
    """`attention` for a mask with `num_shards`; lengths are padded to a multiple of the blocks.

    With more than one shard, call it inside a manual `shard_map`. `interpret` runs the kernels' Python on a CPU.
    """
    assert mask.num_shards is not None, "splash needs static positions (mask.num_shards)"
    lengths = q.shape[1], k.shape[1]
    q = q if scale == 1 else q * scale  # a pass over memory, which a caller avoids by scaling with the rotation
    fit_q, fit_kv = padded_length(lengths[0], blocks.q), padded_length(lengths[1], blocks.kv)
    segments = None
    if mask.query_segments is not None and mask.key_segments is not None:
        segments = SegmentIds(_pad(mask.query_segments, fit_q), _pad(mask.key_segments, fit_kv))
    kernel = _kernel(lengths, mask, blocks, soft_cap, interpret)
    q, k, v = _pad(q, fit_q).swapaxes(1, 2), _pad(k, fit_kv).swapaxes(1, 2), _pad(v, fit_kv).swapaxes(1, 2)

    def one_row(q: Array, k: Array, v: Array, segments: SegmentIds | None) -> Array:
        out = kernel(q, k, v, segments, sinks)
        assert not isinstance(out, tuple)
        return out

    out = jax.vmap(one_row)(q, k, v, segments)
    return out.swapaxes(1, 2)[:, : lengths[0]]


def _pad(x: Array, fit: PaddedLength) -> Array:
    """`[B, T, ...]` padded with zeros at the row's end."""
    return jnp.pad(x, [(0, 0), (0, fit.length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _kernel(
    lengths: tuple[int, int], mask: Mask, blocks: SplashBlocks, soft_cap: float | None, interpret: bool
) -> SplashAttentionKernel:
    """The kernel of this device's queries."""
    num_shards = mask.num_shards
    assert num_shards is not None and lengths[0] * num_shards == lengths[1]
    q, kv = padded_length(lengths[0], blocks.q), padded_length(lengths[1], blocks.kv)
    infos = _infos(lengths, num_shards, mask.window, q.block, kv.block)
    device = collectives.axis_index("seq") if num_shards > 1 else 0
    forward, dq, dkv = jax.tree.map(lambda x: jnp.asarray(x)[device], infos)
    compute = max(size for size in range(LANES, kv.block + 1, LANES) if kv.block % size == 0 and size <= blocks.compute)
    sizes = BlockSizes(
        block_q=q.block,
        block_kv=kv.block,
        block_kv_compute=compute,
        block_q_dkv=q.block,
        block_kv_dkv=kv.block,
        block_kv_dkv_compute=compute,
        block_q_dq=q.block,
        block_kv_dq=kv.block,
    )
    return SplashAttentionKernel(
        forward,
        dq,
        dkv,
        block_sizes=sizes,
        is_mqa=False,  # a key head's queries find it by their index: no copy of K and V
        save_residuals=False,
        mask_value=DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=soft_cap,
        residual_checkpoint_name=OUT_NAME,
        mask_function=_sees(mask.window),
        interpret=interpret,
    )


@cache  # one function per window: the kernel's compilation is keyed by it
def _sees(window: int | None) -> Callable[[Array, Array], Array]:
    if window is None:
        return lambda query, key: query >= key
    return lambda query, key: (query >= key) & (key > query - window)


@cache
def _infos(
    lengths: tuple[int, int], num_shards: int, window: int | None, block_q: int, block_kv: int
) -> tuple[MaskInfo, MaskInfo, MaskInfo]:
    """The kernels' schedules (forward, dq, dk and dv), each array with a leading axis of devices."""
    fit_q, fit_kv = padded_length(lengths[0], block_q), padded_length(lengths[1], block_kv)
    positions = row_order(lengths[1], num_shards).reshape(num_shards, -1)
    positions = np.pad(positions, [(0, 0), (0, fit_q.length - lengths[0])], mode="edge").astype(np.int32)
    seen = _seen_blocks(positions.reshape(num_shards, -1, block_q), fit_kv.length // block_kv, block_kv, window)
    info = partial(MaskInfo, mask_next=None, partial_mask_blocks=None, q_sequence=positions)
    along_keys, along_queries = _packed(seen), _packed(seen.swapaxes(1, 2))
    forward = info(data_next=along_keys.block, block_mask=along_keys.runs)
    backward = info(data_next=along_queries.block.swapaxes(2, 3), block_mask=along_queries.runs.swapaxes(2, 3))
    return forward, forward, backward


def _seen_blocks(positions: np.ndarray, num_kv: int, block_kv: int, window: int | None) -> np.ndarray:
    """`[num_shards, query blocks, key blocks]`: whether any query of a block can see any key of the other."""
    first = np.arange(num_kv) * block_kv
    seen = positions.max(-1)[..., None] >= first
    return seen if window is None else seen & (first + block_kv > positions.min(-1)[..., None] - window + 1)


def _packed(seen: np.ndarray) -> Schedule:
    """Steps over the visible blocks only, as many as the row with the most; shorter rows idle first.

    While idle, a row points to its first block, which is then prefetched during the previous row's last product.
    """
    counts = seen.sum(-1, keepdims=True)
    steps = np.argsort(seen, axis=-1, stable=True)[..., -counts.max() :]
    runs = np.arange(steps.shape[-1]) >= steps.shape[-1] - counts
    return _schedule(np.where(runs, steps, seen.argmax(-1)[..., None]), runs)


def _schedule(block: np.ndarray, runs: np.ndarray) -> Schedule:
    """The schedule in the smallest dtypes, since it goes to scalar memory; the heads share it on an axis of one."""
    dtype = np.int8 if block.max() <= np.iinfo(np.int8).max else np.int32
    return Schedule(block.astype(dtype)[:, None], runs.astype(np.int8)[:, None])
