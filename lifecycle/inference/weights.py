"""Weights as the engine's programs take them: sharded over a mesh, in the compute dtype, layer by layer.

Training scans stacks of layers. Here each layer is written out, with arrays of its own: a TPU's compiler copies the
next layer's weights beside what runs, and takes no slices of stacks (the 8B on v6e:2x4, 64 rows: 8.1 ms a token, and
9.7 in a scan); a CPU copies nothing (`model/params.py:layers_apart`). On one CPU they are also packed for its kernels.
What must hold: they share the memory of what they are made of where they can; nothing of this is done again in a step.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, axes_apart, in_use, layers_apart, logical_axes, parameters
from lifecycle.model.weight_formats import axes_in_use, packed_params
from lifecycle.parallel.mesh import tree_shardings


def weights_in_use(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """A model's weights, in stacks or layer by layer, as the programs take them. Raises `ValueError` without any."""
    if not params:
        raise ValueError("this model has no weights: it is an engine's `model`; use the one that the engine was given")
    axes = logical_axes(config) if is_stacked(params) else axes_apart(config)
    params = jax.device_put(params, tree_shardings(mesh, axes_in_use(axes, params)))
    if is_stacked(params):
        params = layers_apart(config, params, layer)
    declared = layers_apart(config, parameters(config), lambda known, _: known)
    return _packed(config, declared, in_use(config, declared, params), mesh)


def is_stacked(params: Params) -> bool:
    """Whether a model's layers are in stacks, as they are trained."""
    return not any(isinstance(stack, list) for stack in params["blocks"].values())


def layer(stack: Array, number: int) -> Array:
    """A layer's array from its stack, sharded as that is; on one CPU it shares the stack's memory."""
    if platform() == "cpu" and len(stack.sharding.device_set) == 1:
        return jax.device_put(np.asarray(stack)[number], _of_layer(stack.sharding))
    return _sliced(stack, number, _of_layer(stack.sharding))


@partial(jax.jit, static_argnames="sharding")
def _sliced(stack: Array, number: int, sharding: Sharding) -> Array:
    own = jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)
    return jax.lax.with_sharding_constraint(own, sharding)


def _of_layer(sharding: Sharding) -> Sharding:
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:])) if isinstance(sharding, NamedSharding) else sharding


def block_in_use(config: ModelConfig, declared: Params, params: Params, mesh: Mesh) -> Params:
    """The weights of something beside a model's layers, with their declarations, as the programs take them."""
    params = jax.device_put(params, tree_shardings(mesh, axes_in_use(block_axes(declared), params)))
    return _packed(config, declared, in_use(config, declared, params), mesh)


def _packed(config: ModelConfig, declared: Params, params: Params, mesh: Mesh) -> Params:
    return packed_params(config, declared, params) if platform() == "cpu" and mesh.size == 1 else params


def block_axes(declared: Params) -> Params:
    """A tree like that of `block_in_use` before it is packed whose leaves are tuples of logical axis names."""
    return jax.tree.map(lambda known: known.axes, declared)
