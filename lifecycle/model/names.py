"""Canonical names of arrays: one name per layer and weight, whatever the stacking in memory.

In memory the layers' arrays lie under `blocks` on a leading layer axis, because that is what `jax.lax.scan` takes. On
disk and in other tools' files each layer has its own: `blocks.0.attention.q`. What must hold: `stack` undoes
`unstack` bit by bit, and a tree that holds copies of the parameters' tree (an optimizer's moments) is named by the
same rule.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, PyTree

BLOCKS = "blocks"

type KeyPath = tuple[Any, ...]  # the keys that lead to a leaf, as `jax.tree_util` gives them


def unstack(tree: PyTree) -> dict[str, Any]:
    """The arrays of `tree` by dotted name, in the tree's order.

    Below a key `blocks` an array's leading axis is the layer: it becomes one array a layer, the layer's number
    following `blocks` in the name. An array without axes there (a counter) stays whole. Works under `jax.jit`, and on
    NumPy arrays.
    """
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_stacked(path, leaf):
            flat |= {canonical_name(path, layer): leaf[layer] for layer in range(leaf.shape[0])}
        else:
            flat[canonical_name(path)] = leaf
    return flat


def stack_like[T](flat: Mapping[str, Any], like: T) -> T:
    """The tree whose `unstack` is `flat`; `like` is a tree (of arrays or shapes) with its structure."""

    def leaf(path: KeyPath, shape: Any) -> Any:
        if is_stacked(path, shape):
            return _stack([flat[canonical_name(path, layer)] for layer in range(shape.shape[0])])
        return flat[canonical_name(path)]

    return jax.tree_util.tree_map_with_path(leaf, like)


def is_stacked(path: KeyPath, leaf: Any) -> bool:
    """Whether the leading axis of the array (or shape) at `path` is the layer."""
    return BLOCKS in map(_key, path) and leaf.ndim > 0


def canonical_name(path: KeyPath, layer: int | None = None) -> str:
    """The dotted name of the array at `path`, or of one layer's part of it."""
    keys = [_key(entry) for entry in path]
    if layer is not None:
        keys.insert(keys.index(BLOCKS) + 1, str(layer))
    return ".".join(keys)


def _key(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True)


def stack(flat: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Parameters from arrays by canonical name; raises `ValueError` for a layer that is missing or too many."""
    require_layers(flat, num_layers)
    params: dict[str, Any] = {}
    for name, array in flat.items():
        keys = name.split(".")
        if keys[0] == BLOCKS:
            if keys[1] != "0":
                continue
            keys.pop(1)
            rest = ".".join(keys[1:])
            array = _stack([flat[f"{BLOCKS}.{layer}.{rest}"] for layer in range(num_layers)])
        node = params
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
    return params


def require_layers(flat: Mapping[str, Any], num_layers: int) -> None:
    """Raises `ValueError` unless layers `0 .. num_layers - 1` are there, all with the same weights, and no other."""
    found: dict[int, set[str]] = {}
    for name in flat:
        if name.startswith(f"{BLOCKS}."):
            _, layer, rest = name.split(".", 2)
            found.setdefault(int(layer), set()).add(rest)
    if sorted(found) != list(range(num_layers)):
        raise ValueError(f"weights of layers {sorted(found)} are there, the model has layers 0 to {num_layers - 1}")
    weights = set().union(*found.values())
    for layer, own in found.items():
        if own != weights:
            raise ValueError(f"weight {BLOCKS}.{layer}.{min(weights - own)} is missing; other layers have it")


def _stack(arrays: list[Any]) -> Array | np.ndarray:
    return np.stack(arrays) if all(isinstance(a, np.ndarray) for a in arrays) else jnp.stack(arrays)
