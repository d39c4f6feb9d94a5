"""One layer of the decoder, and the trunk: the parameters outside the layers."""

from functools import partial

from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array
from lifecycle.kernels.layout import row_major
from lifecycle.kernels.mask import Mask
from lifecycle.model.cache import LayerCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers import (
    Angles,
    Attention,
    DenseFeedForward,
    Hidden,
    Normed,
    RMSNorm,
    for_layer,
    hidden_norm,
    is_token,
)
from lifecycle.model.mla import LatentAttention
from lifecycle.model.moe import MoE
from lifecycle.model.parameter import normal
from lifecycle.model.routing import RouterStats


class Block(nnx.Module):
    """Attention, then feed-forward or experts, each a branch that is added to its input.

    Norms come before a branch (`x + f(norm(x))`), after it (`x + norm(f(x))`, OLMo 2), or both (Gemma 2).
    """

    def __init__(self, config: ModelConfig, is_moe: bool, rngs: nnx.Rngs) -> None:
        c = self.config = config
        has_pre, has_post = c.norm_position != "post", c.norm_position != "pre"
        self.attention_norm = hidden_norm(c) if has_pre else None
        self.attention = Attention(c, rngs) if c.mla is None else LatentAttention(c, rngs)
        self.attention_post_norm = hidden_norm(c) if has_post else None
        self.feed_forward_norm = hidden_norm(c) if has_pre else None
        self.feed_forward = MoE(c, rngs) if is_moe else DenseFeedForward(c, rngs)
        self.feed_forward_post_norm = hidden_norm(c) if has_post else None

    def __call__(
        self, hidden: Hidden, angles: Angles | None, mask: Mask, cache: LayerCache | None = None
    ) -> tuple[Hidden, RouterStats | None, LayerCache | None]:
        """The layer's output, its router's statistics if it has one, and the cache with the new tokens."""
        x = checkpoint_name(row_major(hidden.x), "input")
        x, attended, cache = self.attention(Normed(x, self.attention_norm, hidden.mean_square), angles, mask, cache)
        x = checkpoint_name(x + _normed(self.attention_post_norm, attended), "middle")
        x, fed, stats = self._fed(Normed(x, self.feed_forward_norm), mask)
        return for_layer(self.config, row_major(x + _normed(self.feed_forward_post_norm, fed))), stats, cache

    def _fed(self, x: Normed, mask: Mask) -> tuple[Array, Array, RouterStats | None]:
        layer = self.feed_forward
        return (x.x, *layer(x.rows(), is_token(mask))) if isinstance(layer, MoE) else (*layer(x), None)


def _normed(norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class Trunk(nnx.Module):
    """The parameters outside the layers: the embedding, the final norm and, unless tied, the head."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = config
        table = partial(normal, rngs, (c.vocab_size, c.d_model), ("vocab", "embed"), c.d_model**-0.5)
        self.embed = table(fan_in=None)
        self.norm = hidden_norm(c)
        self.head = None if c.tie_embeddings else table(fan_in=-1)
