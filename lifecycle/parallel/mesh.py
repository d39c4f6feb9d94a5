"""The device mesh and the one table from logical axis names to mesh axes.

Mesh axes, in this order, each of size >= 1: `replica` (whole copies, across slices), `stage` (pipeline), `fsdp`,
`expert`, `context`, `tensor`. Parameters and activations carry logical names; `RULES` maps each to mesh axes. What does
not divide is an error when the configuration is read, never a silent replication.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from pydantic import Field

from lifecycle.core.config import ConfigError, Section

type AnyMesh = Mesh | AbstractMesh  # of devices, or of their number and kind only

AXES = ("replica", "stage", "fsdp", "expert", "context", "tensor")

# A parameter's dimension and an activation's dimension have different names, so one table serves both. Parameters lie
# cut over all data axes (Rajbhandari et al. 2020, "ZeRO", stage 3); between the layers' products a row's positions are
# cut over `tensor` too (Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4.2.2).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "fsdp", "expert"),  # rows of a batch
    "seq": ("context",),  # positions of a row, inside attention and feed-forward
    "norm_seq": ("tensor",),  # what of `seq`'s part a device holds between them
    "loss_rows": ("replica", "fsdp", "expert", "stage"),  # rows whose loss a device computes
    "vocab": ("tensor",),
    "embed": ("fsdp", "expert", "context"),  # d_model of a parameter
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),  # d_model of an expert's parameter
    "layers": ("stage",),
}


class MeshConfig(Section):
    """Sizes of the mesh axes; their product is the number of devices used."""

    replica: int = Field(default=1, ge=1)
    stage: int = Field(default=1, ge=1)
    fsdp: int = Field(default=1, ge=1)
    expert: int = Field(default=1, ge=1)
    context: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)

    @property
    def size(self) -> int:
        return math.prod(getattr(self, axis) for axis in AXES)


def build_mesh(config: MeshConfig) -> Mesh:
    """The mesh over the job's devices; raises `ConfigError` when the sizes and the devices do not fit."""
    sizes = {axis: getattr(config, axis) for axis in AXES}
    available = jax.device_count()
    if config.size > available or (jax.process_count() > 1 and config.size != available):
        raise ConfigError(_misfit(sizes, config.size, available))
    return lay_over(jax.devices()[: config.size], config)


def lay_over(devices: Sequence[Any], config: MeshConfig) -> Mesh:
    """The mesh over exactly these devices, those of a job or of a topology that is only described.

    On TPUs each axis lies along dimensions of the torus and `replica` across slices: in the devices' own order the
    compiler makes a gather over a v5p 4x4x4 (64 devices) a sum of zero-filled arrays, of twice the traffic. Other
    devices keep their order, in which those of one host are neighbours. Raises `ConfigError` for TPUs that are no box
    of their torus, or slices that do not divide `replica`.
    """
    shape = tuple(getattr(config, axis) for axis in AXES)
    if devices[0].platform != "tpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES)
    from jax.experimental import mesh_utils  # only TPUs need it

    slices = {getattr(device, "slice_index", 0) for device in devices}
    require_whole_slices(config.replica, len(slices), "this job")
    _require_box(devices, len(slices), shape)
    inside = (config.replica // len(slices), *shape[1:])
    if len(slices) == 1:
        laid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        across = (len(slices), *(1 for _ in shape[1:]))
        laid = mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
    return Mesh(laid, AXES)


def require_whole_slices(replica: int, num_slices: int, what: str) -> None:
    """Raises `ConfigError` unless whole copies of the model lie across the slices of `what`."""
    if replica % num_slices:
        raise ConfigError(
            f"mesh.replica={replica} does not divide by the {num_slices} slices of {what}; "
            f"whole copies lie across slices: choose mesh.replica={num_slices}"
        )


def _require_box(devices: Sequence[Any], num_slices: int, shape: tuple[int, ...]) -> None:
    sides = [max(at) - min(at) + 1 for at in zip(*(device.coords for device in devices), strict=True)]
    cores = 1 + max(device.core_on_chip for device in devices)
    if math.prod(sides) * cores * num_slices != len(devices):
        raise ConfigError(
            f"mesh: the first {len(devices)} TPU devices of this job are no box of their torus, so that "
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


def require_divides(mesh: MeshConfig, logical: str, size: int, what: str) -> None:
    """Raises `ConfigError` unless the mesh axes behind `logical` divide `size`; names the axis and the nearest fit."""
    sizes = {axis: getattr(mesh, axis) for axis in RULES[logical] if getattr(mesh, axis) > 1}
    axis_size = math.prod(sizes.values())
    if size % axis_size == 0:
        return
    for axis, asked in reversed(sizes.items()):
        fitting = [n for n in range(1, size + 1) if size % (n * axis_size // asked) == 0]
        if fitting:
            nearest = min(fitting, key=lambda n: abs(n - asked))
            raise ConfigError(
                f"mesh.{axis}={asked} does not divide {what}={size}; nearest that does: mesh.{axis}={nearest}"
            )
    shape = " x ".join(f"mesh.{axis}={asked}" for axis, asked in sizes.items())
    raise ConfigError(f"{shape} does not divide {what}={size}, and no size of one of them alone mends it; change both")


def require_cuts_rows(mesh: MeshConfig, seq_len: int, what: str) -> None:
    """Raises `ConfigError` unless `context` and `tensor` cut a row's positions evenly: two chunks a context device, so
    that each has the same causal work, and between a layer's products a part for each of `tensor`."""
    unit = (2 * mesh.context if mesh.context > 1 else 1) * mesh.tensor
    if seq_len % unit:
        nearest = max(unit, round(seq_len / unit) * unit)
        raise ConfigError(
            f"mesh.context={mesh.context} and mesh.tensor={mesh.tensor} cut a row into {unit} parts; {what}={seq_len} "
            f"is no multiple of it; nearest that is: {nearest}"
        )


def spec(*logical: str | None) -> P:
    """The partition spec of an array whose dimensions carry these logical names (None: not sharded)."""
    return P(*(RULES[name] or None if name is not None else None for name in logical))


def sharding(mesh: AnyMesh, *logical: str | None) -> NamedSharding:
    return NamedSharding(mesh, spec(*logical))


def tree_shardings(mesh: AnyMesh, axes: Any) -> Any:
    """`NamedSharding`s for a tree whose leaves are tuples of logical names."""
    return jax.tree.map(lambda names: sharding(mesh, *names), axes, is_leaf=lambda x: isinstance(x, tuple))
