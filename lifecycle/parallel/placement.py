"""Placement of batches on the mesh, and functions of parameters and a batch that run on it.

A function runs on every device on that device's shards, in one fully manual `jax.shard_map`: its only collectives are
the model's own (`parallel/collectives.py`), so all communication is written in the model, not chosen by a partitioner.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Batch, PyTree
from lifecycle.parallel.columns import axes_of_column
from lifecycle.parallel.mesh import AnyMesh, sharding, spec


def row_order(length: int, num_shards: int) -> np.ndarray:
    """The order of a row's positions in which each of `num_shards` devices gets the same causal work.

    The row is cut into `2 * num_shards` chunks; device `i` holds chunks `i` and `2 * num_shards - 1 - i` as `order[i *
    length / num_shards : (i + 1) * length / num_shards]`. One shard keeps the plain order.

    Raises `ValueError` if the row does not divide into equal chunks.
    """
    if num_shards == 1:
        return np.arange(length)
    if length % (2 * num_shards):
        fit = max(2 * num_shards, length // (2 * num_shards) * 2 * num_shards)
        raise ValueError(
            f"a row of {length} positions cannot be split into 2 x {num_shards} equal chunks over the context axis; "
            f"set seq_len to a multiple of {2 * num_shards} (nearest: {fit}) or a smaller mesh.context"
        )
    chunks = np.arange(length).reshape(2 * num_shards, -1)
    return np.stack([chunks[:num_shards], chunks[: num_shards - 1 : -1]], axis=1).reshape(-1)


def in_plain_order(values: np.ndarray, num_shards: int) -> np.ndarray:
    """`values` of a row's positions `[B, T, ...]`, which are in the order of `row_order`, in the plain order."""
    found = np.empty_like(values)
    found[:, row_order(values.shape[1], num_shards)] = values
    return found


def batch_spec(name: str) -> P:
    """The partition spec of a batch's array: over rows, and over positions if it has them."""
    return spec("batch", "seq") if axes_of_column(name) == "token" else spec("batch")


def batch_sharding(mesh: AnyMesh, name: str) -> NamedSharding:
    """The `NamedSharding` of a batch's array by its name."""
    return NamedSharding(mesh, batch_spec(name))


def shard_batch(
    host: Mapping[str, np.ndarray], mesh: Mesh, size: int | None = None, held: Sequence[int] | None = None
) -> dict[str, jax.Array]:
    """A batch of `size` rows sharded over the mesh; `host` has this process's rows `held` (None: all rows).

    With a context axis, positions go to devices in load-balanced order.
    """
    num_shards, at_row = mesh.shape["context"], None if held is None else {row: at for at, row in enumerate(held)}

    def put(name: str, array: np.ndarray) -> jax.Array:
        if num_shards > 1 and axes_of_column(name) == "token":
            array = array[:, row_order(array.shape[1], num_shards)]
        shape = (size or array.shape[0], *array.shape[1:])

        def piece(at: tuple[slice, ...] | None) -> np.ndarray:
            assert at is not None
            start, stop, _ = at[0].indices(shape[0])
            first = start if at_row is None else at_row[start]  # a device's rows are consecutive
            return array[(slice(first, first + stop - start), *at[1:])]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, name), piece)

    return {name: put(name, array) for name, array in host.items()}


def rows_of_process(mesh: Mesh, size: int, process: int) -> tuple[int, ...]:
    """Which of a batch's `size` rows a process's devices hold, in order.

    Processes that share a row's positions or a model's tensors hold the same rows; on a torus a process's devices are
    a block of it, and their rows need not be consecutive.
    """
    indices = sharding(mesh, "batch").devices_indices_map((size,))
    held = [at for device, at in indices.items() if device.process_index == process]
    return tuple(sorted({row for at in held if at is not None for row in range(*at[0].indices(size))}))


def on_mesh[R](
    function: Callable[[PyTree, Batch], R], mesh: AnyMesh, params: PyTree, out_specs: PyTree
) -> Callable[[PyTree, Batch], R]:
    """`function` run by every device on its shards of the parameters (specs `params`) and of the batch."""

    def run(values: PyTree, batch: Batch) -> R:
        specs = (params, {name: batch_spec(name) for name in batch})
        manual = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return manual(values, dict(batch))

    return run


def sum_over_mesh(tree: PyTree, mesh: AnyMesh) -> PyTree:
    """Sums over the devices' own rows and positions; the values are equal over `tensor` already."""
    axes = _axes_of_rows(mesh)
    return jax.lax.psum(tree, axes) if axes else tree


def largest_over_mesh(tree: PyTree, mesh: AnyMesh) -> PyTree:
    """The largest values over the devices' own rows and positions."""
    axes = _axes_of_rows(mesh)
    return jax.lax.pmax(tree, axes) if axes and jax.tree.leaves(tree) else tree


def _axes_of_rows(mesh: AnyMesh) -> tuple[str, ...]:
    return tuple(axis for axis in mesh.axis_names if axis != "tensor" and mesh.shape[axis] > 1)


def sum_gradients(grads: PyTree, mesh: AnyMesh, params: Any) -> PyTree:
    """Each gradient summed over the mesh axes that do not shard its parameter (specs `params`); over the others it was
    summed when the parameter's gather was differentiated."""

    def summed(grad: jax.Array, spec: P) -> jax.Array:
        cut = {axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,))}
        axes = tuple(axis for axis in mesh.axis_names if axis not in cut and mesh.shape[axis] > 1)
        return jax.lax.psum(grad, axes) if axes else grad

    return jax.tree.map(summed, grads, params)
