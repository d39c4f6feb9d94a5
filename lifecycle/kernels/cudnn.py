"""Attention over a row on NVIDIA GPUs: cuDNN's fused kernels through `jax.nn.dot_product_attention`.

A whole row without segments is plain causal (and windowed) for the kernel, which skips what is masked. Segments, and
queries that are a load-balanced part of a row, go in as a mask `[B, 1, T, S]`, which JAX turns into a bias of the
inputs' dtype that all heads share: 134 MB for a row of 8,192 in bfloat16, where the scores never exist. Under remat
the forward kernel runs again in the backward pass whatever a policy saves: its log-sum-exp has no name.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.mask import OUT_NAME, Mask


def takes(q: Array, k: Array, v: Array, soft_cap: float | None, sinks: Array | None) -> bool:
    """Whether the kernels serve these inputs: 16-bit, heads of a multiple of 8 dimensions and not too many, an even
    number of positions, no soft cap and no sinks."""
    is_16_bit = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (q, k, v))
    fits = q.shape[-1] <= _max_head_dim() and q.shape[-1] % 8 == 0 and v.shape[-1] <= q.shape[-1]
    return is_16_bit and fits and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0 and soft_cap is None and sinks is None


def _max_head_dim() -> int:
    """256 from Hopper on, 128 before; JAX asks the local GPU too, so without one it is the smaller number."""
    local = jax.local_devices()[0]
    is_hopper = local.platform == "gpu" and float(local.compute_capability) >= 9
    return 256 if is_hopper else 128


def cudnn_attention(
    q: Float[Array, "B T H Dk"], k: Float[Array, "B S K Dk"], v: Float[Array, "B S K Dv"], mask: Mask, *, scale: float
) -> Float[Array, "B T H Dv"]:
    """`attention` for a mask with `row_ways` and inputs that `takes` accepts.

    Values narrower than keys (latent attention) are filled up with zeros, which JAX's entry asks for.
    """
    assert mask.row_ways is not None, "cuDNN's causal mask needs the queries of a row"
    value_dim = v.shape[-1]
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - value_dim)])
    is_row = mask.row_ways == 1
    is_plain = is_row and mask.query_segments is None
    window = None if mask.window is None or not is_row else (mask.window - 1, 0)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=None if is_plain else mask.dense()[:, None],
        scale=scale,
        is_causal=is_row,
        local_window_size=window,
        implementation="cudnn",
    )
    return checkpoint_name(out[..., :value_dim], OUT_NAME)
