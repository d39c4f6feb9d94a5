"""Canonical names of arrays: one name per layer and weight, independent of stacking.

In memory the arrays of layers of equal structure are stacked under `blocks` with a leading layer axis, for
`jax.lax.scan`; the stack `2+6` holds layers 2, 8, 14, ... On disk and in other tools' files each layer has its own
name: `blocks.8.attention.q`. Prediction modules are a stack under `mtp`, named in the same way: `mtp.0.projection`.
What must hold: `stack_like` undoes `unstack` bit for bit, and a tree that contains copies of the parameters' tree (an
optimizer's moments) is named by the same rule.
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, PyTree
from lifecycle.model.stacks import MODULES

STACKED = ("blocks", MODULES)

type KeyPath = tuple[Any, ...]  # the keys that lead to a leaf, as `jax.tree_util` gives them


def unstack(tree: PyTree) -> dict[str, Any]:
    """The arrays of `tree` by dotted name, in the tree's order.

    An array without axes below `blocks` (a counter) is not split. Works under `jax.jit`, and on NumPy arrays.
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_stacked(path, leaf):
            flat |= {name: leaf[layer] for layer, name in enumerate(layer_names(path, leaf))}
        else:
            flat[canonical_name(path)] = leaf
    return flat


def stack_like[T](flat: MutableMapping[str, Any], like: T, stack: Callable[[list[Any], Any], Any] | None = None) -> T:
    """The tree whose `unstack` is `flat`, which is emptied on the way; `like` is a tree (of arrays or shapes) with its
    structure. `stack` makes a stack of the layers' arrays, given its leaf of `like`."""
    stack = stack or (lambda arrays, _: _stack(arrays))

    def leaf(path: KeyPath, shape: Any) -> Any:
        if is_stacked(path, shape):
            return stack([flat.pop(name) for name in layer_names(path, shape)], shape)
        return flat.pop(canonical_name(path))

    return jax.tree_util.tree_map_with_path(leaf, like)


def is_stacked(path: KeyPath, leaf: Any) -> bool:
    """Whether the leading axis of the array (or shape) at `path` is the layer, or the prediction module."""
    return any(key in STACKED for key in map(_key, path)) and leaf.ndim > 0


def layer_names(path: KeyPath, leaf: Any) -> Iterator[str]:
    """The canonical names of a stack's layers, in the order of its leading axis."""
    keys = [_key(entry) for entry in path]
    stack = next(at for at, key in enumerate(keys) if key in STACKED) + 1
    first, period = map(int, keys[stack].split("+"))
    for number in range(first, first + period * leaf.shape[0], period):
        yield ".".join([*keys[:stack], str(number), *keys[stack + 1 :]])


def canonical_name(path: KeyPath) -> str:
    """The dotted name of the array at `path`, which is not a stack."""
    return ".".join(map(_key, path))


def _key(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True)


def _stack(arrays: list[Any]) -> Array | np.ndarray:
    return np.stack(arrays) if all(isinstance(a, np.ndarray) for a in arrays) else jnp.stack(arrays)
