"""The compilers of programs for devices that are not here: libtpu, and XLA's for NVIDIA's GPUs, which needs no driver.

A compiler describes a topology's devices, says what it needs to compile without them, and what its figures mean. Both
read their environment when they are loaded, so call `topology.prepare` before the first topology. The GPU compiler
gets a chip's properties as text (`GpuTargetConfigProto`); they are those that XLA publishes for it
(openxla/xla `xla/backends/gpu/target_config/specs`). Without a device it tunes nothing: it takes its own default for
the kernel of each product.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.planning.chips import DEVICE_KINDS, GPUS_PER_NODE, Chip


class Compiler(ABC):
    """What a plan asks of the compiler for one kind of device."""

    name: str
    module: str  # the Python module that brings it
    extra: str  # the extra of this package that installs it
    libraries: tuple[str, ...]  # distributions whose versions determine what it compiles to
    options: Mapping[str, str]  # without which it does not compile for devices that are not here
    usable_share: float  # of a device's memory, what a process takes unless it is told otherwise
    highest_share: float  # what it can be told to take
    shapes: str  # that it knows, in words

    @property
    def is_installed(self) -> bool:
        """Whether its library is here."""
        return find_spec(self.module) is not None

    def require(self) -> None:
        """Raises `ConfigError` if its library is not here."""
        if not self.is_installed:
            raise ConfigError(
                f"{self.name} is not installed: uv sync --extra {self.extra}, or pip install 'lifecycle[{self.extra}]'"
            )

    @abstractmethod
    def describe(self, chip: Chip, shape: tuple[int, ...], num_slices: int, wrap: tuple[bool, ...]) -> list[Any]:
        """The devices of slices of `shape` chips, for compilation only; `wrap` says which dimensions form a ring.
        Raises `JaxRuntimeError` for slices that it does not know."""

    @abstractmethod
    def target(self, chip: Chip) -> str | None:
        """What the compiler is told of the chip beside its name; None: nothing."""

    @abstractmethod
    def coordinates(self, device: Any) -> tuple[int, ...]:
        """`x, y, z, core, slice` of a device: places in its fast network, and which of these networks."""

    @abstractmethod
    def peak_bytes(self, stats: Any) -> int:
        """The memory that a program needs on a device, from JAX's `CompiledMemoryStats`."""


class TpuCompiler(Compiler):
    """libtpu. It rejects a program that does not fit; its peak is the most bytes of buffers that are live at once."""

    name, module, extra = "the TPU compiler (libtpu)", "libtpu", "tpu"
    libraries = ("jax", "jaxlib", "libtpu")
    options: Mapping[str, str] = {}
    usable_share = highest_share = 1.0
    shapes = "sides of 1, 2 or multiples of 4 as a rule"

    def describe(self, chip: Chip, shape: tuple[int, ...], num_slices: int, wrap: tuple[bool, ...]) -> list[Any]:
        """The chips of a torus, or of several."""
        from jax.experimental import topologies

        options: dict[str, Any] = {"wrap": wrap}
        if num_slices > 1:
            options["num_slices"] = num_slices
        if chip.chip_config is not None:
            options["chip_config_name"] = chip.chip_config
        name = f"{chip.name}:{'x'.join(map(str, shape))}"
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices

    def target(self, chip: Chip) -> str | None:
        """Its name for "both cores are one device"."""
        return chip.chip_config

    def coordinates(self, device: Any) -> tuple[int, ...]:
        """Its place in the torus, its core, and its slice."""
        return (*device.coords, device.core_on_chip, getattr(device, "slice_index", None) or 0)

    def peak_bytes(self, stats: Any) -> int:
        """The compiler's peak, by which it decides whether a program fits."""
        return stats.peak_memory_in_bytes


@dataclass(frozen=True)
class Gpu:
    """A GPU's properties, beside those of its `Chip`, from which its compiler chooses kernels and tiles."""

    capability: str  # the text of its `cuda_compute_capability`
    cores: int  # streaming multiprocessors
    units_per_core: int  # for float32
    core_memory_bytes: int  # shared memory of a core
    block_memory_bytes: int  # of it, what one block of threads may have
    cache_bytes: int  # level 2
    clock_ghz: float


ACCELERATED = "feature_extension: ACCELERATED_FEATURES"  # products of whole warp groups, and so on
HOPPER = Gpu(f"major: 9 {ACCELERATED}", 132, 128, 233472, 232448, 52428800, 1.98)
GPUS = {
    "h100": HOPPER,
    "h200": HOPPER,
    "a100-80": Gpu("major: 8", 108, 64, 167936, 166912, 41943040, 1.41),
    "b200": Gpu(f"major: 10 {ACCELERATED}", 148, 128, 233472, 232448, 132644864, 1.965),
}
CUDNN = 9, 10  # the version that programs are compiled for
TARGET = """
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}
runtime_version {{ major: 13 }}
gpu_device_info {{
  cuda_compute_capability {{ {gpu.capability} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units_per_core}
  shared_memory_per_core: {gpu.core_memory_bytes}
  shared_memory_per_block_optin: {gpu.block_memory_bytes}
  l2_cache_size: {gpu.cache_bytes}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {chip.hbm_bytes_per_s:.0f}
  device_memory_size: {chip.hbm_bytes}
  shared_memory_per_block: 49152
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


class GpuCompiler(Compiler):
    """XLA's compiler in JAX's plugin for CUDA. It rejects no program for its size."""

    name, module, extra = "the GPU compiler (JAX's CUDA plugin)", "jax_cuda13_plugin", "gpu-compiler"
    libraries = ("jax", "jaxlib", "jax-cuda13-pjrt")
    options: Mapping[str, str] = {"xla_gpu_autotune_level": "0"}  # there is no device to tune on
    usable_share = 0.75  # XLA_PYTHON_CLIENT_MEM_FRACTION's default (docs.jax.dev, "GPU memory allocation")
    highest_share = 0.95  # the rest is for the process's context and NCCL
    shapes = f"whole nodes of {GPUS_PER_NODE} GPUs, or a part of one"

    def describe(self, chip: Chip, shape: tuple[int, ...], num_slices: int, wrap: tuple[bool, ...]) -> list[Any]:
        """The GPUs of whole nodes, or of a part of one. A node is a partition of its own, where the fast network
        ends."""
        from jax._src.cudnn import fused_attention_stablehlo
        from jax.experimental import topologies

        del wrap
        # JAX asks for this machine's cuDNN, which need not be there, before it lowers attention for another's
        fused_attention_stablehlo.check_cudnn_version = lambda: 10000 * CUDNN[0] + 100 * CUDNN[1]
        per_node = min(shape[0], GPUS_PER_NODE)
        partitions = f"{num_slices * shape[0] // per_node}x1x{per_node}"  # partitions, their hosts, a host's devices
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=self.target(chip), topology=partitions
        )
        return described.devices

    def target(self, chip: Chip) -> str | None:
        """The text of a `GpuTargetConfigProto`."""
        kind = next(kind for kind, name in DEVICE_KINDS.items() if name == chip.name)
        return TARGET.format(kind=kind, gpu=GPUS[chip.name], chip=chip, cudnn=CUDNN)

    def coordinates(self, device: Any) -> tuple[int, ...]:
        """Its number in its node, and the node."""
        node, host, place = device.coords
        assert host == 0, "a node is a partition of one host"
        return (place, 0, 0, 0, node)

    def peak_bytes(self, stats: Any) -> int:
        """What a process allocates for a run: arguments, the results that do not take an argument's place, and all
        temporaries, as one block. XLA's own peak leaves out gaps between them, which are allocated all the same."""
        kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        return kept + stats.temp_size_in_bytes


TPU_COMPILER, GPU_COMPILER = TpuCompiler(), GpuCompiler()


def compiler_of(chip: Chip) -> Compiler:
    """The compiler of programs for a chip."""
    return TPU_COMPILER if chip.is_tpu else GPU_COMPILER
