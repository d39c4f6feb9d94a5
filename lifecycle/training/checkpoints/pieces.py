"""The pieces of sharded arrays: what one process holds of them, and how it gets those that another one holds.

A piece is the part of an array at one index; devices along the mesh axes that do not shard the array hold the same
piece. What must hold: every device ends with exactly the bits that were saved. So pieces travel as integers. A piece
that no process of its own devices has moves to one of these devices; from one of its devices each piece goes to the
others in a sum over those axes, to which all others add zeros: a sum of floats would lose the sign of -0.0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

type Device = Any  # a `jax.Device`, which type checkers do not know as a class
type Holders = Mapping[Device, bool]  # for one array: whether a device's process has that device's piece
type Moves = Mapping[Device, Device]  # from the device that reads a piece to one that holds it, each once


@dataclass(frozen=True)
class Route:
    """How the devices get the pieces of one array. `reads`: those that read their own; `rounds`: one after the other,
    which read another's. The rest get theirs from a device with the same piece."""

    reads: frozenset[Device]
    rounds: tuple[Moves, ...] = ()


def piece_name(name: str, shape: Sequence[int], index: tuple[slice, ...]) -> str:
    """The name of the piece of an array at an index: `params.embed@0-16,0-8`."""
    bounds = (part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    return f"{name}@{','.join(f'{start}-{stop}' for start, stop in bounds)}"


def copied_pieces(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """This process's pieces of arrays, each once, copied to host memory: the arrays may be donated then."""
    held = {
        piece_name(name, array.shape, shard.index): shard.data
        for name, array in arrays.items()
        for shard in array.addressable_shards
    }
    return {name: np.array(data, copy=True) for name, data in jax.device_get(held).items()}


def names_by_device(name: str, leaf: Any) -> dict[Device, str]:
    """The piece that each device of the mesh holds of an array, given its shape and sharding."""
    indices = leaf.sharding.devices_indices_map(leaf.shape)
    return {device: piece_name(name, leaf.shape, index) for device, index in indices.items()}


def sources(names: Mapping[Device, str], holders: Holders) -> dict[str, Device]:
    """The device that reads each piece, by the mesh's order: of those whose process has their own."""
    found: dict[str, Device] = {}
    for device, piece in names.items():
        if holders[device]:
            found.setdefault(piece, device)
    return found


def route(names: Mapping[Device, str], holders: Holders, elsewhere: Mapping[str, Sequence[int]]) -> Route:
    """How the devices get their pieces. `elsewhere`: the processes, one or more, that have a piece which no process of
    its own devices has."""
    if all(holders.values()):
        return Route(frozenset(names))
    reads = sources(names, holders)
    targets: dict[str, Device] = {}
    for device, piece in names.items():
        targets.setdefault(piece, device)
    rounds: list[dict[Device, Device]] = []
    for piece in (piece for piece in targets if piece not in reads):
        able = [device for device in names if device.process_index in elsewhere[piece]]
        _add(rounds, able, targets[piece])
    return Route(frozenset(reads.values()), tuple(rounds))


def _add(rounds: list[dict[Device, Device]], able: Sequence[Device], target: Device) -> None:
    """Adds a move from one of the devices that are able to: each reads one piece in a round."""
    for moves in rounds:
        if (free := next((device for device in able if device not in moves), None)) is not None:
            moves[free] = target
            return
    rounds.append({able[0]: target})


def assembled(name: str, leaf: Any, way: Route, read: Callable[[str], np.ndarray]) -> jax.Array:
    """The array, from this process's pieces, which `read` returns, and those of others. All processes call it alike."""
    names, sharding = names_by_device(name, leaf), leaf.sharding
    blank = np.zeros(sharding.shard_shape(leaf.shape), _bits(leaf.dtype))

    def placed(reading: Mapping[Device, str]) -> jax.Array:
        parts = [
            jax.device_put(read(reading[device]).view(blank.dtype) if device in reading else blank, device)
            for device in names
            if device.process_index == jax.process_index()
        ]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    bits = placed({device: names[device] for device in way.reads})
    number = {device: place for place, device in enumerate(sharding.mesh.devices.flat)}
    for moves in way.rounds:
        pairs = tuple((number[source], number[target]) for source, target in moves.items())
        moving = placed({source: names[target] for source, target in moves.items()})
        bits = _with_moved(sharding.mesh, sharding.spec, pairs)(bits, moving)
    is_whole = len(way.reads) == len(names)
    return _joined(sharding.mesh, sharding.spec, jnp.dtype(leaf.dtype), is_whole)(bits)


def _bits(dtype: Any) -> np.dtype:
    return np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


@cache
def _with_moved(
    mesh: Mesh, spec: PartitionSpec, pairs: tuple[tuple[int, int], ...]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Adds the pieces of another array, moved between devices by their numbers in the mesh, where there was none."""

    def local(bits: jax.Array, moving: jax.Array) -> jax.Array:
        return bits | jax.lax.ppermute(moving, mesh.axis_names, pairs)  # what nobody sends is zero

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, spec), donate_argnums=0)


@cache
def _joined(mesh: Mesh, spec: PartitionSpec, dtype: Any, is_whole: bool) -> Callable[[jax.Array], jax.Array]:
    """From integers to the array's dtype; unless each device has its piece, over a sum along the axes of copies."""
    sharding = {axis for part in spec if part is not None for axis in ([part] if isinstance(part, str) else part)}
    copies = tuple(axis for axis in mesh.axis_names if axis not in sharding)

    def local(bits: jax.Array) -> jax.Array:
        if not is_whole and copies:
            bits = jax.lax.psum(bits.astype(jnp.uint32), copies).astype(bits.dtype)
        return bits.astype(dtype) if dtype == jnp.bool_ else jax.lax.bitcast_convert_type(bits, dtype)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, spec), donate_argnums=0)
