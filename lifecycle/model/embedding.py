"""The two ends of a model: from tokens to vectors, and from vectors to the vocabulary's logits."""

from typing import Any

import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.logits import Head, in_dtype, project, rows_of, soft_capped
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, compute_dtype
from lifecycle.parallel.collectives import all_gather, all_to_all, axis_index, axis_size, reduce_scatter


def embed(config: ModelConfig, table: Head, tokens: Int[Array, "B T"]) -> Float[Array, "B t D"]:
    """The tokens' rows of the embedding table, in the compute dtype.

    If the table is sharded over `d_model`, each device looks up its columns for all devices' tokens, and an all-to-all
    exchanges the results: for 16,384 tokens of 4,096 dimensions, an eighth of the bytes of gathering a table of 128,256
    rows.
    """
    tokens = all_gather(tokens[None], "embed", 0)
    if axis_size("vocab") > 1:
        tokens = tokens - axis_index("vocab") * table.shape[0]
        is_here = (tokens >= 0) & (tokens < table.shape[0])
        rows = jnp.where(is_here[..., None], rows_of(table, jnp.where(is_here, tokens, 0)), 0.0)
    else:
        rows = rows_of(table, tokens)
    rows = rows.astype(compute_dtype(config))
    is_cut = axis_size("hidden") > 1  # then every device keeps its columns of all rows
    rows = rows.reshape(1, -1, rows.shape[-1]) if is_cut else all_to_all(rows, "embed", 0, 3)[0]
    rows = reduce_scatter(rows, "norm_seq", 1)
    return rows * jnp.asarray(config.d_model**0.5, rows.dtype) if config.use_embed_scale else rows


def head(config: ModelConfig, params: Params) -> Any:
    """The output projection `[V, D]`, in the parameters' dtype and sharding; rounded a `QuantisedTable`."""
    return params["embed" if config.tie_embeddings else "head"]


def logits(config: ModelConfig, params: Params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Logits in float32, for a few positions; for whole rows use `kernels.cross_entropy`."""
    return logits_of(config, head(config, params), hidden)


def logits_of(config: ModelConfig, table: Any, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """`logits` by other rows than the model's whole head, which have its sharding."""
    own = _own_logits(config, table, hidden.reshape(-1, hidden.shape[-1]))
    return all_gather(own, "vocab", 1).reshape(*hidden.shape[:-1], -1)


def logits_of_own_rows(config: ModelConfig, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, "b V"]:
    """The logits of this device's share of the rows, which those that share the vocabulary divide among them."""
    return all_to_all(_own_logits(config, head(config, params), hidden), "vocab", 0, 1)


def _own_logits(config: ModelConfig, table: Any, hidden: Float[Array, "B D"]) -> Float[Array, "B columns"]:
    """Of all rows, for this device's part of the vocabulary.

    If the head is sharded over `d_model`, each device multiplies its columns of the head by the same columns of all
    devices' rows, and the partial sums are reduce-scattered: for 8 rows of 8,192 dimensions on each of 4 devices, a
    128th of the bytes of gathering the head.
    """
    rows = all_to_all(hidden, "embed", 1, 0)
    parts = project(rows, in_dtype(table, hidden.dtype))
    return soft_capped(reduce_scatter(parts, "embed", 0), config.logits_soft_cap)
