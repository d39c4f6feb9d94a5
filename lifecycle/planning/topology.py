"""Devices that are not present: a topology by name, from the compiler of its chips, and our mesh over it.

`v5p:4x4x4` names a chip and a shape in chips; a suffix `*2` means two such slices, connected by the data-centre
network. `h100:16` is two nodes of eight GPUs. The compilers' libraries (`compilers.py`) read their environment when
they are loaded, so call `prepare` before the first topology.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import AXES, MeshConfig, require_replicas_per_slice
from lifecycle.parallel.mesh import mesh_over_devices
from lifecycle.planning.chips import GPUS_PER_NODE, Chip, find_chip
from lifecycle.planning.compilers import Compiler, compiler_of

if TYPE_CHECKING:
    from jax.sharding import Mesh

# Loads libtpu without chips: JAX itself runs on the CPU, and libtpu neither queries a cloud's metadata server nor takes
# the lock that keeps two programs from sharing a chip.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any value works; without one libtpu complains on stderr
    "TPU_WORKER_HOSTNAMES": "localhost",  # likewise
}
PATTERN = re.compile(r"(?P<chip>[a-z0-9-]+):(?P<shape>\d+(x\d+)*)(\*(?P<slices>\d+))?")
# A 2-D slice wraps at a full pod's side, a 3-D one at multiples of 4; GPUs behind a switch form no ring
WRAPS_FROM = {0: math.inf, 2: 16, 3: 4}


@dataclass(frozen=True)
class Topology:
    """One or more equal slices of one kind of chip. `shape` is in chips per dimension; a GPU's has one dimension."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """The topology as users write it: `v5p:4x4x4*2`."""
        slices = f"*{self.num_slices}" if self.num_slices > 1 else ""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{slices}"

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices: one or two per chip."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def num_nodes(self) -> int:
        """GPUs: the nodes that have them, each with a fast network of its own."""
        return self.num_slices * math.ceil(math.prod(self.shape) / GPUS_PER_NODE)

    @property
    def compiler(self) -> Compiler:
        """The compiler of programs for its chips."""
        return compiler_of(self.chip)

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which dimensions wrap around to form a ring.

        Without wrap-around the compiler turns an all-gather over all dimensions into an all-reduce of zero-filled
        arrays, with twice the traffic.
        """
        if self.chip.torus_dims == 3 and any(side % WRAPS_FROM[3] for side in self.shape):
            return (False, False, False)  # the optical switches that close rings only join cubes of 4
        closed = [side >= WRAPS_FROM[self.chip.torus_dims] for side in self.shape]
        x, y, z, *_ = (*closed, False, False, False)
        return (x, y, z)


def parse_topology(text: str) -> Topology:
    """Parses `chip:shape` or `chip:shape*slices`; raises `ConfigError` with the expected form or the nearest name."""
    match = PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigError(
            f"topology={text}: expected CHIP:SHAPE, for example v5p:4x4x4, v6e:16x16, h100:8 or v5p:4x4x4*2"
        )
    chip = find_chip(match["chip"])
    shape = tuple(int(side) for side in match["shape"].split("x"))
    dims = chip.torus_dims or 1
    if len(shape) != dims or not all(shape):
        example = {1: "8", 2: "4x8", 3: "4x4x8"}[dims]
        raise ConfigError(
            f"topology={text}: a {chip.name} shape has {dims} number{'s' * (dims > 1)}, as {chip.name}:{example}"
        )
    if not chip.is_tpu and shape[0] > GPUS_PER_NODE and shape[0] % GPUS_PER_NODE:
        near = GPUS_PER_NODE * math.ceil(shape[0] / GPUS_PER_NODE)
        raise ConfigError(
            f"topology={text}: {GPUS_PER_NODE} GPUs are a node; choose whole nodes, for example "
            f"topology={chip.name}:{near}, or a part of one"
        )
    return Topology(chip, shape, int(match["slices"] or 1))


def prepare() -> None:
    """Sets the environment that lets compilers load without their devices; call it before JAX touches one."""
    import jax

    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # setting JAX_PLATFORMS is too late: JAX read it on import


@cache
def devices(topology: Topology) -> tuple[Any, ...]:
    """The topology's devices, for compilation only. Raises `ConfigError` if there is no compiler for them."""
    from jax.errors import JaxRuntimeError

    compiler = topology.compiler
    compiler.require()
    try:
        return tuple(compiler.describe(topology.chip, topology.shape, topology.num_slices, topology.wrap))
    except JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"topology={topology.name}: {compiler.name} rejects it: {reason}; it knows {compiler.shapes}"
        ) from None


def device_coordinates(topology: Topology, devices: np.ndarray) -> np.ndarray:
    """Rows `x, y, z, core, slice` of a mesh's devices, in its order."""
    return np.array([topology.compiler.coordinates(device) for device in devices.flat], dtype=np.int64)


def mesh_over(topology: Topology, config: MeshConfig, section: str = "mesh", axis: str = "fsdp") -> "Mesh":
    """Our mesh over the topology, laid out as in a job on such devices; `section` of the run's file has its sizes.

    Raises `ConfigError` if the sizes do not use exactly all devices (it suggests a size of `axis` that does), or if an
    axis that needs the fast network would span slices.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    check_fits(topology, sizes, section, axis)
    return mesh_over_devices(devices(topology), config)


def mesh_of_one(topology: Topology) -> "Mesh":
    """Our mesh over the topology's first device."""
    return mesh_over_devices(devices(topology)[:1], MeshConfig())


def check_fits(topology: Topology, sizes: Mapping[str, int], section: str = "mesh", axis: str = "fsdp") -> None:
    """Raises `ConfigError` unless the mesh uses exactly the topology's devices, with `replica` across its slices."""
    product = math.prod(sizes.values())
    if product != topology.num_devices:
        shape = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "one device"
        fitting, rest = divmod(topology.num_devices, product // sizes[axis])
        product_is = f"axes whose product is {topology.num_devices}"
        choice = f"{section}.{axis}={fitting}" if fitting and not rest else product_is
        raise ConfigError(
            f"{section}: {shape} has size {product}, but {topology.name} has {topology.num_devices} devices; "
            f"choose {choice}"
        )
    require_replicas_per_slice(sizes["replica"], topology.num_slices, topology.name)
