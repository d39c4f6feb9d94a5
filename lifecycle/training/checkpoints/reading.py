"""Reads a checkpoint's arrays onto a mesh; with replicas, from storage once.

Each device gets its own shard, and no host more than its devices' shards. Where `mesh.replica` copies the state, the
processes of the first replica read, and the others get their pieces from them over the network between the hosts
(`pieces.py`), as Orbax's `SingleReplicaArrayHandler` does; that one adds floats to zeros, which loses the sign of -0.0.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.pieces import assembled, names_by_device, piece_name, route

REPLICA = "replica"


def read_arrays(item: Path, wanted: Shapes) -> dict[str, jax.Array]:
    """The arrays of one item of a checkpoint, in the dtypes and shardings of `wanted`. All processes of the job make
    the same call."""
    first = first_replica(wanted)
    if first is None:
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(item, wanted)
    read = _read_by(first, item, wanted)
    devices = _devices(first)
    found: dict[str, jax.Array] = {}
    for name, leaf in wanted.items():
        held = _pieces(name, read.pop(name)) if read else {}
        holders = {device: device in devices for device in _devices(leaf.sharding.mesh)}
        way = route(names_by_device(name, leaf), holders, {})
        found[name] = assembled(name, leaf, way, lambda piece, held=held: np.asarray(held[piece]))
    return found


def read_here(wanted: Shapes) -> Shapes:
    """The arrays that this process reads from storage to have its shards of `wanted`, as they are sharded then."""
    first = first_replica(wanted)
    if first is None:
        return wanted
    return _on(first, wanted) if jax.process_index() in _processes(first) else {}


def first_replica(wanted: Shapes) -> Mesh | None:
    """The mesh of the first replica, if the arrays have copies in others, with processes of their own."""
    if jax.process_count() == 1 or not wanted:
        return None
    shardings = [leaf.sharding for leaf in wanted.values()]
    if not all(isinstance(sharding, NamedSharding) and REPLICA not in _axes(sharding) for sharding in shardings):
        return None
    mesh: Any = shardings[0].mesh
    if mesh.shape.get(REPLICA, 1) == 1:
        return None
    axis = mesh.axis_names.index(REPLICA)
    first = Mesh(mesh.devices.take([0], axis), mesh.axis_names)
    others = {device.process_index for device in mesh.devices.flat} - _processes(first)
    alone = {device for device in mesh.devices.flat if device.process_index not in others}
    return first if alone == _devices(first) else None


def _read_by(first: Mesh, item: Path, wanted: Shapes) -> dict[str, Any]:
    """The arrays on the first replica, in its processes; nothing in others."""
    processes = _processes(first)
    if jax.process_index() not in processes:
        return {}
    options = ocp.options.MultiprocessingOptions(
        primary_host=min(processes), active_processes=processes, barrier_sync_key_prefix="first_replica"
    )
    with ocp.StandardCheckpointer(multiprocessing_options=options) as reader:
        return reader.restore(item, _on(first, wanted))


def _on(mesh: Mesh, wanted: Shapes) -> Shapes:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec))
        for name, leaf in wanted.items()
    }


def _pieces(name: str, array: jax.Array) -> dict[str, jax.Array]:
    return {piece_name(name, array.shape, shard.index): shard.data for shard in array.addressable_shards}


def _devices(mesh: Any) -> set[Any]:
    return set(mesh.devices.flat)


def _processes(mesh: Any) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}


def _axes(sharding: NamedSharding) -> set[str]:
    parts = [part for part in sharding.spec if part is not None]
    return {axis for part in parts for axis in ([part] if isinstance(part, str) else part)}
