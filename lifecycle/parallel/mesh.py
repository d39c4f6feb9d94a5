"""The device mesh, and shardings of arrays with logical axis names (the table is in `parallel/axes.py`)."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import AXES, RULES, MeshConfig, require_replicas_per_slice

type AnyMesh = Mesh | AbstractMesh  # of devices, or of their number and kind only


def build_mesh(config: MeshConfig) -> Mesh:
    """The mesh over the job's devices; raises `ConfigError` if the sizes do not match the number of devices."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    available = jax.device_count()
    if config.size > available or (jax.process_count() > 1 and config.size != available):
        raise ConfigError(_misfit(sizes, config.size, available))
    return mesh_over_devices(jax.devices()[: config.size], config)


def make_mesh(**axes: int) -> Mesh:
    """`build_mesh` of axis sizes: `make_mesh(fsdp=4, tensor=2)`; without any, one device."""
    return build_mesh(MeshConfig(**axes))


def mesh_over_devices(devices: Sequence[Any], config: MeshConfig) -> Mesh:
    """The mesh over exactly these devices, of a job or of a described topology.

    On TPUs each axis runs along dimensions of the torus, and `replica` across slices: in the devices' own order the
    compiler turns an all-gather over a v5p 4x4x4 (64 devices) into a sum of zero-filled arrays, with twice the traffic.
    Other devices keep their order, in which those of one host are neighbours. Raises `ConfigError` for TPUs that are
    not a box of their torus, or slices that do not divide `replica`.
    """
    shape = tuple(getattr(config, axis) for axis in AXES)
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    from jax.experimental import mesh_utils  # only TPUs need it

    slices = {getattr(device, "slice_index", 0) for device in devices}
    require_replicas_per_slice(config.replica, len(slices), "this job")
    _require_box(devices, len(slices), shape)
    inside = (config.replica // len(slices), *shape[1:])
    if len(slices) == 1:
        ordered = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        across = (len(slices), *(1 for _ in shape[1:]))
        ordered = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    return Mesh(ordered, AXES)


def inference_mesh(mesh: Mesh) -> Mesh:
    """The mesh's devices with its `for_inference` sizes."""
    sizes = MeshConfig(**mesh.shape).for_inference
    order = ("replica", "stage", "fsdp", "context", "expert", "tensor")
    devices = mesh.devices.transpose([AXES.index(axis) for axis in order])
    return Mesh(devices.reshape([getattr(sizes, axis) for axis in AXES]), AXES)


def computing_on(mesh: AnyMesh) -> AbstractContextManager[None]:
    """The mesh's devices as those that are computed on (`core/platform.py`), outside of a `shard_map` too."""
    return jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh)


def _require_box(devices: Sequence[Any], num_slices: int, shape: tuple[int, ...]) -> None:
    sides = [max(at) - min(at) + 1 for at in zip(*(device.coords for device in devices), strict=True)]
    cores = 1 + max(device.core_on_chip for device in devices)
    if math.prod(sides) * cores * num_slices != len(devices):
        raise ConfigError(
            f"mesh: the first {len(devices)} TPU devices of this job are not a box of their torus, so "
            f"{' x '.join(map(str, shape))} cannot be laid over them; choose a mesh of all {jax.device_count()} devices"
        )


def _misfit(sizes: dict[str, int], wanted: int, available: int) -> str:
    axis = max(sizes, key=lambda name: sizes[name])
    rest = wanted // sizes[axis]
    fitting = max(1, available // rest)
    shape = " x ".join(f"{a}={s}" for a, s in sizes.items() if s > 1) or "one device"
    return (
        f"mesh: {shape} needs {wanted} devices, this job has {available}; the nearest that fits: mesh.{axis}={fitting}"
    )


def spec(*logical: str | None) -> P:
    """The partition spec of an array whose dimensions carry these logical names (None: not sharded)."""
    return P(*(RULES[name] or None if name is not None else None for name in logical))


def sharding(mesh: AnyMesh, *logical: str | None) -> NamedSharding:
    """The `NamedSharding` of an array whose dimensions have these logical axes; None: replicated."""
    return NamedSharding(mesh, spec(*logical))


def tree_shardings(mesh: AnyMesh, axes: Any) -> Any:
    """`NamedSharding`s for a tree whose leaves are tuples of logical names."""
    return jax.tree.map(lambda names: sharding(mesh, *names), axes, is_leaf=lambda x: isinstance(x, tuple))


def tree_specs(axes: Any) -> Any:
    """Partition specs for a tree whose leaves are tuples of logical names."""
    return jax.tree.map(lambda names: spec(*names), axes, is_leaf=lambda x: isinstance(x, tuple))
