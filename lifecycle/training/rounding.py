"""Parameters held in bfloat16 without float32 copies: each update is rounded stochastically.

Most of a late step's updates are smaller than half the distance between two bfloat16 numbers, and rounding to nearest
would drop them all. Rounded up with a probability equal to the share of the distance, a sum of updates has the right
mean (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.1; Zamirai et al. 2020, "Revisiting
BFloat16 Training", section 4). A step's update, the optimizer's state and an average of the weights are in float32.

What must hold: the random bits depend on the step, the parameter's path and the element's place in the whole array, and
on no mesh: threefry in its partitionable form counts global indices. So a resumed run ends with the same bits.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, parameters
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.weights.names import KeyPath

type Hold = Callable[[Params], Params]  # from float32 parameters to those that a state holds


def holding(config: OptimizerConfig, model: ModelConfig) -> Hold:
    """How a state holds its trained parameters: in the optimizer's `param_dtype`, rounded to nearest at the start,
    except for the few that the model uses in float32."""
    declared = dict(jax.tree_util.tree_leaves_with_path(parameters(model)))

    def held(path: KeyPath, array: Array) -> Array:
        return array if declared[path].is_float32 else array.astype(config.param_dtype)

    return lambda params: jax.tree_util.tree_map_with_path(held, params)


def widened(params: Params) -> Params:
    """The parameters in float32."""
    return jax.tree.map(lambda array: array.astype(jnp.float32), params)


def rounded_like(held: Params, wide: Params, step: Int[Array, ""]) -> Params:
    """Float32 parameters, after a step, in the dtypes of those before it."""

    def leaf(path: KeyPath, before: Array, after: Array) -> Array:
        if before.dtype == after.dtype:
            return after
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), step)
        key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return round_stochastically(after, jax.random.bits(key, after.shape, jnp.uint16))

    return jax.tree_util.tree_map_with_path(leaf, held, wide)


def round_stochastically(x: Float[Array, "*dims"], noise: Any) -> Float[Array, "*dims"]:
    """A float32 array in bfloat16, rounded by uniform 16-bit noise: away from zero with a probability equal to the
    share of the distance between two bfloat16 numbers. Values that are not finite stay so."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise.astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
