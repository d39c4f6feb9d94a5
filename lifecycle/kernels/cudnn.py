"""Attention over a row on NVIDIA GPUs: cuDNN's fused kernels through `jax.nn.dot_product_attention`.

A full row without segments is plain causal (and windowed) for the kernel, which skips what is masked. Segments, and
queries that are a load-balanced part of a row, are passed as a mask `[B, 1, T, S]`, which JAX turns into a bias of the
inputs' dtype that all heads share: 134 MB for a row of 8,192 in bfloat16; the scores never exist. Under remat the
forward kernel runs again in the backward pass whatever a policy saves: its log-sum-exp has no name.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array, Float
from lifecycle.kernels.mask import OUT_NAME, Mask

# The most bytes of float32 scores that attention may hold at once on a GPU if cuDNN does not support it. Plain products
# keep their softmax weights for the backward pass, layer by layer: at 1 GB a layer, the setting has to change, not the
# GPU.
LARGEST_PLAIN_SCORES = 10**9


def limitations(
    q: Float[Array, "B T H Dk"],
    k: Float[Array, "B S K Dk"],
    v: Float[Array, "B S K Dv"],
    soft_cap: float | None,
    sinks: Float[Array, " H"] | None,
) -> list[str]:
    """Why cuDNN does not support these inputs, each reason with its setting; empty if it does. It supports 16-bit heads
    of up to 128 or 256 dimensions in steps of 8, an even number of positions, no soft cap and no sinks."""
    reasons: list[str] = []
    if any(x.dtype not in (jnp.bfloat16, jnp.float16) for x in (q, k, v)):
        reasons.append(f"queries, keys and values in {q.dtype}: set model.compute_dtype=bfloat16")
    most, dim = _max_head_dim(), q.shape[-1]
    if dim > most or dim % 8 or v.shape[-1] > dim:
        reasons.append(f"heads of {dim} dimensions with values of {v.shape[-1]}: it has up to {most}, in steps of 8")
    if q.shape[1] % 2 or k.shape[1] % 2:
        reasons.append(f"an odd number of positions ({q.shape[1]} queries, {k.shape[1]} keys): set an even seq_len")
    if soft_cap is not None:
        reasons.append(f"model.attention_soft_cap={soft_cap}")
    if sinks is not None:
        reasons.append("model.use_sinks=true")
    return reasons


def require_small(q: Float[Array, "B T H Dk"], k: Float[Array, "B S K Dk"], reasons: list[str]) -> None:
    """Raises `ConfigError` if plain attention would hold too many scores; `reasons` say why cuDNN does not apply."""
    rows, queries, heads, _ = q.shape
    num_bytes = 4 * rows * heads * queries * k.shape[1]
    if num_bytes > LARGEST_PLAIN_SCORES:
        raise ConfigError(
            f"attention on a GPU: cuDNN does not support {'; nor '.join(reasons)}. Without it a layer's scores, {rows} "
            f"rows x {heads} heads x {queries} x {k.shape[1]} in float32, take {num_bytes / 1e9:.1f} GB a device; the "
            f"limit is {LARGEST_PLAIN_SCORES / 1e9:.0f} GB. Change the setting named above, set a shorter seq_len or a "
            "larger grad_accum, shard heads over mesh.tensor or positions over mesh.context, or train on TPUs"
        )


def _max_head_dim() -> int:
    """256 from Hopper on, 128 before or without a local GPU, which JAX checks too."""
    local = jax.local_devices()[0]
    is_hopper = local.platform == "gpu" and float(local.compute_capability) >= 9
    return 256 if is_hopper else 128


def cudnn_attention(
    q: Float[Array, "B T H Dk"], k: Float[Array, "B S K Dk"], v: Float[Array, "B S K Dv"], mask: Mask, *, scale: float
) -> Float[Array, "B T H Dv"]:
    """`attention` for a mask with `num_shards` and inputs without `limitations`.

    Values narrower than keys (latent attention) are padded with zeros, as JAX's function requires.
    """
    assert mask.num_shards is not None, "cuDNN's causal mask needs the queries of a row"
    value_dim = v.shape[-1]
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - value_dim)])
    is_row = mask.num_shards == 1
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
