"""Weights as the engine's programs take them: sharded over a mesh, in the compute dtype, on CPUs layer by layer.

On one CPU they are also packed for its kernels. What must hold: they share the memory of what they are made of where
they can; nothing of this is done again in a step.
"""

from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import platform
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import (
    Params,
    axes_apart,
    in_use,
    layers_apart,
    logical_axes,
    parameters,
    params_in_use,
)
from lifecycle.model.weight_formats import axes_in_use, packed_params
from lifecycle.parallel.mesh import tree_shardings


def has_layers_apart() -> bool:
    """Whether the programs take each layer's weights and cache by themselves: on CPUs (`layers_apart`)."""
    return platform() == "cpu"


def weight_axes(config: ModelConfig, is_apart: bool) -> Params:
    """A tree like that of the programs' weights whose leaves are tuples of logical axis names."""
    return axes_apart(config) if is_apart else logical_axes(config)


def weights_in_use(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """A model's weights as the programs take them."""
    params = jax.device_put(params, tree_shardings(mesh, axes_in_use(logical_axes(config), params)))
    params = params_in_use(config, params)
    if not has_layers_apart():
        return params
    if mesh.size > 1:
        apart = partial(layers_apart, config)
        axes = axes_in_use(axes_apart(config), jax.eval_shape(apart, params))
        return jax.jit(apart, out_shardings=tree_shardings(mesh, axes))(params)
    here = NamedSharding(mesh, P())
    apart = layers_apart(config, params, lambda stack, number: jax.device_put(np.asarray(stack)[number], here))
    return packed_params(config, layers_apart(config, parameters(config), lambda known, _: known), apart)


def block_in_use(config: ModelConfig, declared: Params, params: Params, mesh: Mesh) -> Params:
    """The weights of something beside a model's layers, with their declarations, as the programs take them."""
    params = jax.device_put(params, tree_shardings(mesh, axes_in_use(block_axes(declared), params)))
    params = in_use(config, declared, params)
    return packed_params(config, declared, params) if has_layers_apart() and mesh.size == 1 else params


def block_axes(declared: Params) -> Params:
    """A tree like that of `block_in_use` before it is packed whose leaves are tuples of logical axis names."""
    return jax.tree.map(lambda known: known.axes, declared)
