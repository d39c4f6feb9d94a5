"""Multi-token prediction: modules behind the decoder that predict further tokens (DeepSeek-V3, section 2.2).

Module `k` sees, at position `i`, the module before it (the decoder itself for `k = 1`) and the embedding of token
`i + k`; from both its block makes the hidden state that predicts token `i + k + 1`. Embedding and head are the
decoder's. The published weights fix what the paper leaves open (vLLM's `deepseek_mtp.py` runs them): the projection
takes the embedding first, module 1 the decoder's hidden states after the final norm, and the others the block's output
before the module's own norm.

What must hold: the decoder computes the same with modules and without, and no module looks into another document.
"""

import jax.numpy as jnp
from flax import nnx

from lifecycle.core.typing import Array, Batch, Float, Int, Shaped
from lifecycle.kernels.linear import linear
from lifecycle.kernels.mask import Mask
from lifecycle.model.block import Block
from lifecycle.model.cache import LayerCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.cut_hidden import to_columns, to_rows
from lifecycle.model.layers import Angles, for_layer, full_row, hidden_norm
from lifecycle.model.parameter import matrix
from lifecycle.model.routing import RouterStats
from lifecycle.parallel.collectives import axis_index, axis_size, reduce_scatter
from lifecycle.parallel.placement import row_order


class PredictionModule(nnx.Module):
    """One module. Its block is like the decoder's last layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = self.config = config
        self.embed_norm = hidden_norm(c)
        self.hidden_norm = hidden_norm(c)
        self.projection = matrix(rngs, (2 * c.d_model, c.d_model), ("embed", None))
        self.block = Block(c, c.is_moe(c.num_layers - 1), rngs)
        self.norm = hidden_norm(c)

    def __call__(
        self,
        x: Float[Array, "B t D"],
        embedded: Float[Array, "B t D"],
        angles: Angles | None,
        mask: Mask,
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "B t D"], Float[Array, "B t D"], RouterStats | None, LayerCache | None]:
        """The block's output, for the next module; the same after the norm, for the head; the router's statistics; the
        cache with the new tokens."""
        both = jnp.concatenate([to_rows(self.embed_norm(embedded)), to_rows(self.hidden_norm(x))], axis=-1)
        both = reduce_scatter(linear(to_columns(both), self.projection[...]), "hidden", 2)
        hidden = for_layer(self.config, both)
        hidden, stats, cache = self.block(hidden, angles, mask, cache)
        return hidden.x, self.norm(*hidden), stats, cache


def cached_layer(config: ModelConfig) -> ModelConfig:
    """A module's block as a model of one layer: the config of its KV cache."""
    kind = config.kind(config.num_layers - 1)
    return config.trunk.model_copy(update={"num_layers": 1, "layer_pattern": (kind,), "moe": None})


def ahead(batch: Batch, depth: int) -> Batch:
    """A batch's arrays as module `depth` has them: tokens, targets and mask from `depth` positions later in the row.

    A position whose document ends before that in its row is padding: segment 0, without loss.
    """
    segments = batch["segment_ids"]
    is_inside = (segments > 0) & (_later(segments, depth) == segments)
    return {
        "tokens": _later(batch["tokens"], depth),
        "targets": _later(batch["targets"], depth),
        "positions": batch["positions"],
        "segment_ids": jnp.where(is_inside, segments, 0),
        "loss_mask": jnp.where(is_inside, _later(batch["loss_mask"], depth), 0.0),
    }


def _later(x: Shaped[Array, "B T"], depth: int) -> Shaped[Array, "B T"]:
    """What `x` is `depth` positions later, at this device's positions; 0 past the row's end."""
    moved = jnp.pad(full_row(x), [(0, 0), (0, depth)])[:, depth:]
    return moved if axis_size("seq") == 1 else moved[:, own_positions(x.shape[1])]


def own_positions(length: int) -> Int[Array, " T"]:
    """The places in their row of the `length` positions that this device holds."""
    num_shards = axis_size("seq")
    return jnp.asarray(row_order(length * num_shards, num_shards)).reshape(num_shards, -1)[axis_index("seq")]
