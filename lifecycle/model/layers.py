"""The decoder's layers, as the papers write them. Nothing here knows of devices, batches or optimizers.

Weights of products are stored `[in, out]`, the heads flattened into one dimension.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.attention import Mask, attention
from lifecycle.kernels.linear import linear, swiglu
from lifecycle.kernels.rotary import rotate
from lifecycle.model.cache import LayerCache
from lifecycle.model.config import ModelConfig


def scaled_normal(rngs: nnx.Rngs, rows: int, columns: int, scale: float = 1.0) -> nnx.Param:
    """A `[rows, columns]` weight with variance `scale^2 / rows`, so that a product keeps its input's size."""
    return nnx.Param(jax.random.normal(rngs.params(), (rows, columns)) * (scale * rows**-0.5))


class RMSNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (normed * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with RoPE and, if asked for, normalised queries and keys."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = self.config = config
        self.q = scaled_normal(rngs, c.d_model, c.num_heads * c.head_dim)
        self.k = scaled_normal(rngs, c.d_model, c.num_kv_heads * c.head_dim)
        self.v = scaled_normal(rngs, c.d_model, c.num_kv_heads * c.head_dim)
        self.o = scaled_normal(rngs, c.num_heads * c.head_dim, c.d_model, (2 * c.num_layers) ** -0.5)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.use_qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.use_qk_norm else None

    def __call__(
        self, x: Float[Array, "B T D"], angles: Array, mask: Mask, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        c = self.config
        q = linear(x, self.q[...]).reshape(*x.shape[:2], c.num_heads, c.head_dim)
        k = linear(x, self.k[...]).reshape(*x.shape[:2], c.num_kv_heads, c.head_dim)
        v = linear(x, self.v[...]).reshape(*x.shape[:2], c.num_kv_heads, c.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            cache = cache.write(k, v, mask.query_positions)
            k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
        out = attention(q, k, v, mask).reshape(*x.shape[:2], c.num_heads * c.head_dim)
        return linear(out, self.o[...]), cache


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = config
        self.gate = scaled_normal(rngs, c.d_model, c.d_ff)
        self.up = scaled_normal(rngs, c.d_model, c.d_ff)
        self.down = scaled_normal(rngs, c.d_ff, c.d_model, (2 * c.num_layers) ** -0.5)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return linear(swiglu(linear(x, self.gate[...]), linear(x, self.up[...])), self.down[...])


class Block(nnx.Module):
    """One layer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Array, mask: Mask, cache: LayerCache | None = None
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        attended, cache = self.attention(self.attention_norm(x), angles, mask, cache)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache


class Trunk(nnx.Module):
    """What is not a layer: the embedding, the last norm and, unless it is the embedding, the head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = config
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (c.vocab_size, c.d_model)) * c.d_model**-0.5)
        self.norm = RMSNorm(c.d_model, c.norm_eps)
        self.head = None if c.tie_embeddings else scaled_normal_table(rngs, c)


def scaled_normal_table(rngs: nnx.Rngs, config: ModelConfig) -> nnx.Param:
    """The untied head, `[V, D]` like the embedding."""
    shape = (config.vocab_size, config.d_model)
    return nnx.Param(jax.random.normal(rngs.params(), shape) * config.d_model**-0.5)
