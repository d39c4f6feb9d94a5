"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1).

Keys and values are projected from one latent of `kv_lora_rank` dimensions per token; positions enter through a rotary
key that all heads share. Without a cache both are expanded to each head's keys and values. The cache has only the
latent and the rotary key: the key projection is absorbed into the query (`q' (W c) = (W' q)' c`), the latent serves as
key and value of all heads, and each head's values are projected from attention's output.

Latents are narrow (576 dimensions per token against 7168 in DeepSeek-V3), so on a mesh they are gathered: over `tensor`
from the positions that a device normalises, over `context` to the full row. Each of n `context` devices expands the
full row for its heads (2.8 % of a layer's FLOPs in DeepSeek-V3, n times over) and receives 1/71 of the bytes of
expanded keys and values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.attention import attention
from lifecycle.kernels.linear import Weight, dense, linear
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.quantised import QuantisedWeight
from lifecycle.kernels.rotary import score_scale
from lifecycle.model.cache import LayerCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers import Angles, Normed, RMSNorm, apply_rope, branch_scale, full_row
from lifecycle.model.parameter import matrix
from lifecycle.parallel.collectives import all_gather, reduce_scatter

LATENT_NORM_EPS = 1e-6  # as in the published code, whatever the model's own `norm_eps`


class LatentAttention(nnx.Module):
    """Multi-head latent attention."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = self.config = config
        assert c.mla is not None
        m = self.sizes = c.mla
        queries, expanded = c.num_heads * c.head_dim, c.num_heads * (m.nope_head_dim + m.v_head_dim)
        rank = m.q_lora_rank
        # a latent's dimensions are sharded like d_model if they are the rows of a matrix
        self.q = matrix(rngs, (c.d_model, queries), ("embed", "heads")) if rank is None else None
        self.q_down = matrix(rngs, (c.d_model, rank), ("embed", None)) if rank is not None else None
        self.q_down_norm = _latent_norm(rank, c, "hidden") if rank is not None else None
        self.q_up = matrix(rngs, (rank, queries), ("embed", "heads")) if rank is not None else None
        self.kv_down = matrix(rngs, (c.d_model, m.kv_lora_rank + m.rope_head_dim), ("embed", None))
        self.kv_down_norm = _latent_norm(m.kv_lora_rank, c)
        self.kv_up = matrix(rngs, (m.kv_lora_rank, expanded), ("embed", "heads"))
        self.o = matrix(rngs, (c.num_heads * m.v_head_dim, c.d_model), ("heads", "embed"), branch_scale(c))

    def __call__(
        self, x: Normed, angles: Angles | None, mask: Mask, cache: LayerCache | None
    ) -> tuple[Float[Array, "B t D"], Float[Array, "B t D"], LayerCache | None]:
        """The branch's input and its output for this device's `t` positions, and the cache with the new tokens."""
        rows = x.rows()
        q, latents = self._queries(rows, angles), self._latents(rows, angles)
        if cache is None:
            out = self._expanded(q, full_row(latents), mask)
        else:
            out, cache = self._absorbed(q, latents, cache)
        out = linear(all_gather(out.reshape(*out.shape[:2], -1), "hidden", 1), self.o[...])
        return x.x, reduce_scatter(out, "norm_seq", 1), cache

    def _queries(self, x: Array, angles: Angles | None) -> Float[Array, "B T H Dh"]:
        if self.q_down is not None and self.q_up is not None and self.q_down_norm is not None:
            latent = reduce_scatter(checkpoint_name(linear(x, self.q_down[...]), "q_latent"), "hidden", 2)
            q = linear(all_gather(self.q_down_norm(latent), "norm_seq", 1), self.q_up[...])
        else:
            assert self.q is not None
            q = linear(all_gather(x, "norm_seq", 1), self.q[...])
        q = reduce_scatter(q, "hidden", 1)
        q = q.reshape(*q.shape[:2], -1, self.config.head_dim)
        nope, rotary = jnp.split(q, [self.sizes.nope_head_dim], axis=-1)
        return checkpoint_name(jnp.concatenate([nope, apply_rope(rotary, angles)], axis=-1), "q")

    def _latents(self, x: Array, angles: Angles | None) -> Float[Array, "B T 1 Dc+Dr"]:
        """The normed latent, then the rotated rotary key, as the cache stores them."""
        both = reduce_scatter(checkpoint_name(linear(x, self.kv_down[...]), "kv_latent"), "hidden", 1)
        latent, rotary = jnp.split(both, [self.sizes.kv_lora_rank], axis=-1)
        both = all_gather(jnp.concatenate([self.kv_down_norm(latent), rotary], axis=-1), "norm_seq", 1)
        latent, rotary = jnp.split(both[:, :, None], [self.sizes.kv_lora_rank], axis=-1)
        return jnp.concatenate([latent, apply_rope(rotary, angles)], axis=-1)

    def _expanded(self, q: Array, latents: Float[Array, "B S 1 Dc+Dr"], mask: Mask) -> Float[Array, "B T H Dv"]:
        """Attention with every head's own keys and values."""
        m = self.sizes
        latent, rotary = jnp.split(latents, [m.kv_lora_rank], axis=-1)
        both = linear(latent[:, :, 0], self.kv_up[...])
        both = both.reshape(*both.shape[:2], -1, m.nope_head_dim + m.v_head_dim)
        k, v = jnp.split(both, [m.nope_head_dim], axis=-1)
        k = jnp.concatenate([k, jnp.broadcast_to(rotary, (*k.shape[:-1], m.rope_head_dim))], axis=-1)
        return attention(q, checkpoint_name(k, "k"), checkpoint_name(v, "v"), mask, **self._options())

    def _absorbed(
        self, q: Array, latents: Float[Array, "B T 1 Dc+Dr"], cache: LayerCache
    ) -> tuple[Float[Array, "B T H Dv"], LayerCache]:
        """The same attention with the key projection absorbed: one key head, whose first `Dc` dimensions are the
        values."""
        m = self.sizes
        up = dense(_whole(self.kv_up[...])).astype(q.dtype).reshape(m.kv_lora_rank, -1, m.nope_head_dim + m.v_head_dim)
        key_up, value_up = jnp.split(up, [m.nope_head_dim], axis=-1)
        nope, rotary = jnp.split(q, [m.nope_head_dim], axis=-1)
        q = jnp.concatenate([_einsum("bthn,rhn->bthr", nope, key_up), rotary], axis=-1)
        out, cache = cache.attend(q, latents[:, :, 0], **self._options())
        return _einsum("bthr,rhv->bthv", out, value_up), cache

    def _options(self) -> dict[str, Any]:
        """Attention's options; in both forms the scale is that of the expanded head."""
        c = self.config
        scale = (c.attention_scale or c.head_dim**-0.5) * score_scale(c.rope_scaling)
        return {"scale": scale, "soft_cap": c.attention_soft_cap}


def _latent_norm(size: int, config: ModelConfig, cut: str | None = None) -> RMSNorm:
    return RMSNorm(size, config.model_copy(update={"norm_eps": LATENT_NORM_EPS}), cut)


def _whole(weight: Weight) -> Weight:
    """A weight whose rows are cut with the hidden states, gathered: it is used in no plain product."""
    if isinstance(weight, QuantisedWeight):
        return QuantisedWeight(all_gather(weight.values, "hidden", 0), weight.scale)
    return all_gather(weight, "hidden", 0) if isinstance(weight, jax.Array) else weight


def _einsum(formula: str, x: Array, weight: Array) -> Array:
    """A product per head, accumulated in float32."""
    return jnp.einsum(formula, x, weight, preferred_element_type=jnp.float32).astype(x.dtype)
