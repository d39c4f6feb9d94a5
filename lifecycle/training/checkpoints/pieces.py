"""The pieces of sharded arrays: what one process holds of them, and how it gets those that another one holds.

A piece is the part of an array at one index; devices along the mesh axes that do not shard the array hold the same
piece. What must hold: every device ends with exactly the bits that were saved. So pieces travel as integers, from one
source device each, in a sum over those axes to which all others add zeros: a sum of floats would lose the sign of -0.0.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

type Device = Any  # a `jax.Device`, which type checkers do not know as a class
type Holders = Mapping[Device, bool]  # for one array: whether a device's process has that device's piece


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


def sources(names: Mapping[Device, str], holders: Holders) -> dict[str, Device] | None:
    """The device from which each piece comes, by the mesh's order; None if no process has one of them."""
    found: dict[str, Device] = {}
    for device, piece in names.items():
        if holders[device]:
            found.setdefault(piece, device)
    return found if found.keys() == set(names.values()) else None


def assembled(name: str, leaf: Any, holders: Holders, read: Callable[[str], np.ndarray]) -> jax.Array:
    """The array, from this process's pieces, which `read` returns, and those of others. All processes call it alike."""
    names = names_by_device(name, leaf)
    chosen = sources(names, holders)
    assert chosen is not None
    is_whole = all(holders.values())
    blank = np.zeros(leaf.sharding.shard_shape(leaf.shape), _bits(leaf.dtype))
    parts = []
    for device, piece in names.items():
        if device.process_index == jax.process_index():
            is_source = is_whole or chosen[piece] == device
            parts.append(jax.device_put(read(piece).view(blank.dtype) if is_source else blank, device))
    bits = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)
    return _joined(leaf.sharding.mesh, leaf.sharding.spec, jnp.dtype(leaf.dtype), is_whole)(bits)


def _bits(dtype: Any) -> np.dtype:
    return np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


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
