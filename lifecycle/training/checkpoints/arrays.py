"""A checkpoint's arrays by canonical name: one per layer and weight, whatever the stacking in memory."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import PyTree
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.weights.names import canonical_name, is_stacked, layer_names, stack_like

type Shapes = dict[str, jax.ShapeDtypeStruct]

_WIDENED: dict[Any, Any] = {jnp.dtype(jnp.bfloat16): jnp.dtype(jnp.float32)}


def abstract_arrays(tree: PyTree) -> Shapes:
    """Shapes, dtypes and shardings of `unstack(tree)`; a layer is sharded like its part of the stack."""
    flat: Shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_stacked(path, leaf):
            layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=_without_first_axis(leaf.sharding))
            flat |= dict.fromkeys(layer_names(path, leaf), layer)
        else:
            flat[canonical_name(path)] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return flat


def _without_first_axis(sharding: Sharding) -> Sharding:
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:])) if isinstance(sharding, NamedSharding) else sharding


def stacked(flat: dict[str, jax.Array], like: PyTree) -> PyTree:
    """The tree whose arrays by canonical name are `flat`, which is emptied: beside the tree, the devices hold one
    stack's layers twice. `like` has its structure, with shapes and shardings."""

    return stack_like(flat, like, lambda layers, leaf: _stack(leaf.sharding)(layers))


@cache
def _stack(sharding: Sharding) -> Any:
    return jax.jit(lambda layers: jnp.stack(layers), out_shardings=sharding)


def saved_shapes(item: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> (shape, dtype) of the arrays in one item of a checkpoint."""
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(item).item_metadata
    return {name: (tuple(array.shape), array.dtype) for name, array in saved.items()}


def require_same(item: Path, expected: Shapes, is_widened: bool = False) -> None:
    """Raises `CheckpointError`, naming the first array that differs: Orbax would cast or truncate. `is_widened`: saved
    in bfloat16, arrays may be read in float32, which is exact."""
    saved, wanted = saved_shapes(item), {name: (leaf.shape, leaf.dtype) for name, leaf in expected.items()}
    if is_widened:
        wide = {name: (shape, _WIDENED.get(dtype, dtype)) for name, (shape, dtype) in saved.items()}
        saved |= {name: shown for name, shown in wide.items() if shown == wanted.get(name)}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            shown = [f"{x[0]} {x[1]}" if x else "absent" for x in (saved.get(name), wanted.get(name))]
            raise CheckpointError(
                f"{item.parent}: {item.name} {name} is {shown[0]}, in this run {shown[1]}; the model, the optimizer or "
                "the frozen parameters differ: restore that config or start a new run"
            )
