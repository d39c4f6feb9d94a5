"""A model's arrays by canonical name: their shapes and their declarations."""

import jax

from lifecycle.model.config import ModelConfig
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import abstract_params, parameters
from lifecycle.weights.families.layout import LAYERS, OF_MODULES, Shape
from lifecycle.weights.names import canonical_name, is_stacked, layer_names


def array_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the model's arrays by canonical name, layer by layer."""
    shapes: dict[str, Shape] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        if is_stacked(path, leaf):
            shapes.update((name, leaf.shape[1:]) for name in layer_names(path, leaf))
        else:
            shapes[canonical_name(path)] = leaf.shape
    return dict(sorted(shapes.items(), key=lambda item: _depth(item[0])))


def declarations(config: ModelConfig) -> dict[str, Parameter]:
    """The declarations of the model's arrays by canonical name; a layer has that of its stack."""
    found: dict[str, Parameter] = {}
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    for (path, shape), known in zip(shapes, jax.tree.leaves(parameters(config)), strict=True):
        names = layer_names(path, shape) if is_stacked(path, shape) else [canonical_name(path)]
        found.update((name, known) for name in names)
    return found


def _depth(array: str) -> tuple[int, int]:
    """Layers in order after the trunk, prediction modules after them: a layer's tensors are adjacent in a file."""
    if not array.startswith((LAYERS, OF_MODULES)):
        return -1, 0
    return int(array.startswith(OF_MODULES)), int(array.split(".")[1])
