"""A compiled program's memory on one device, in parts that a user can change.

On TPUs the peak is the largest sum of buffers that are live at once, arguments included. The compiler itself uses it
to decide whether a program fits (seen on v5e: 13 GiB of arguments with 2.75 GiB of temporaries are rejected as
15.78 GiB, the peak; allocated sizes would sum to 15.91). On GPUs it is what a process allocates (`compilers.py`). What
must hold: the parts add up to the peak.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from lifecycle.core.typing import PyTree
from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compilers import compiler_of


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes per device."""

    parameters_bytes: int
    optimizer_bytes: int
    cache_bytes: int  # the engine's keys and values of all slots
    other_arguments_bytes: int  # the batch
    temporaries_bytes: int  # the peak minus the arguments: activations, gradients, gathered parameters, workspace
    peak_bytes: int
    code_bytes: int  # the program itself; not part of the peak
    hbm_bytes: int
    host_bytes: int  # host memory that holds this device's offloaded arrays
    usable_share: float = 1.0  # of the device's memory, what a process takes unless it is told otherwise
    highest_share: float = 1.0  # what it can be told to take
    beside_bytes: int = (
        0  # arrays that are no arguments, but lie on the device while the program runs; part of the peak
    )

    @property
    def share(self) -> float:
        """The peak as a share of the device's memory."""
        return self.peak_bytes / self.hbm_bytes

    @property
    def fits(self) -> bool:
        """Whether a process can take what the program needs."""
        return self.share <= self.highest_share

    @property
    def needs_setting(self) -> bool:
        """Whether the program fits only if the process is told to take more than it does by default."""
        return self.fits and self.share > self.usable_share


def device_memory(
    compilation: Compilation, known_bytes: Mapping[str, int], chip: Chip, beside_bytes: int = 0
) -> DeviceMemory:
    """The memory of a compiled program; `known_bytes` are the sizes of its arguments (`bytes_by_part`)."""
    parameters = known_bytes["parameters"] + known_bytes.get("embedding", 0)
    optimizer, cache = known_bytes.get("optimizer", 0), known_bytes.get("cache", 0)
    return DeviceMemory(
        parameters_bytes=parameters,
        optimizer_bytes=optimizer,
        cache_bytes=cache,
        other_arguments_bytes=compilation.argument_bytes - parameters - optimizer - cache,
        temporaries_bytes=compilation.peak_bytes - compilation.argument_bytes,
        peak_bytes=compilation.peak_bytes + beside_bytes,
        beside_bytes=beside_bytes,
        code_bytes=compilation.code_bytes,
        hbm_bytes=chip.hbm_bytes,
        host_bytes=compilation.host_bytes,
        usable_share=compiler_of(chip).usable_share,
        highest_share=compiler_of(chip).highest_share,
    )


def bytes_by_part(arguments: Mapping[str, PyTree]) -> dict[str, int]:
    """Bytes per device of a program's arguments (abstract arrays), by part."""
    return {part: sum(_device_bytes(array) for array in jax.tree.leaves(tree)) for part, tree in arguments.items()}


def _device_bytes(array: jax.ShapeDtypeStruct) -> int:
    assert array.sharding is not None, "an argument says how it is sharded"
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
