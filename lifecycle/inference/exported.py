"""A model's two programs as StableHLO, by `jax.export`: they run wherever JAX does, without this package.

Weights are arguments, a dict by canonical name, and so is the cache, a list of arrays. Each layer's weights are arrays
of their own: stacking them would copy all of them in each step. What must hold: the programs compute what the engine
does (`model/decoder.py:forward_cached`), for a prompt in chunks and then token by token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Int
from lifecycle.model.cache import KVCache, init_cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_cached
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, abstract_in_use, compute_dtype, layers_apart
from lifecycle.weights.names import canonical_name, is_stacked, layer_names, unstack

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

type Shapes = Mapping[str, jax.ShapeDtypeStruct]


def weight_shapes(config: ModelConfig) -> Shapes:
    """The weights' shapes and dtypes by canonical name, layer by layer."""
    return jax.eval_shape(unstack, abstract_in_use(config))


def cache_shapes(config: ModelConfig, batch: int, length: int) -> Sequence[jax.ShapeDtypeStruct]:
    """The arrays of an empty cache (all zeros) for `batch` rows of at most `length` tokens."""
    return jax.tree.leaves(jax.eval_shape(lambda: _empty(config, batch, length).stacks))


def export_step(config: ModelConfig, batch: int, length: int, size: int) -> jax.export.Exported:
    """The program for `size` new tokens of each of `batch` rows, for all of `PLATFORMS`.

    `(weights, cache, tokens [B T], positions [B T], last [B]) -> (logits [B V] after token `last`, cache)`. Positions
    of a row are consecutive; those of padding, at the end, are `length`.
    """
    names = _names(config)

    def step(
        weights: Mapping[str, Array],
        held: Sequence[Array],
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        last: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], list[Array]]:
        params = jax.tree.map(lambda name: weights[name], names)
        empty = _empty(config, batch, length)  # its pages' tables are constants
        before = replace(empty, stacks=jax.tree.unflatten(jax.tree.structure(empty.stacks), held))
        hidden, after = forward_cached(config, params, tokens, positions, before)
        chosen = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return logits(config, params, chosen).astype(jnp.float32), jax.tree.leaves(after.stacks)

    rows = jax.ShapeDtypeStruct((batch, size), jnp.int32)
    arguments = (
        dict(weight_shapes(config)),
        list(cache_shapes(config, batch, length)),
        rows,
        rows,
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    return jax.export.export(jax.jit(step, donate_argnums=1), platforms=PLATFORMS)(*arguments)


def _empty(config: ModelConfig, batch: int, length: int) -> KVCache:
    return init_cache(config, batch, length, compute_dtype(config), is_apart=True)


def _names(config: ModelConfig) -> Params:
    """The parameters' tree with each layer apart, of canonical names."""

    def named(path: Any, leaf: Any) -> np.ndarray:
        names = list(layer_names(path, leaf)) if is_stacked(path, leaf) else canonical_name(path)
        return np.array(names, object)

    tree = jax.tree_util.tree_map_with_path(named, abstract_in_use(config))
    return jax.tree.map(str, layers_apart(config, tree))
