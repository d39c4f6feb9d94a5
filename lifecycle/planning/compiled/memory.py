"""A compiled program's memory on one device, in parts that a user can change.

The compiler's peak is the largest sum of buffers that live at once, arguments included: it is what its own check for
"does it fit" uses (seen on v5e: 13 GiB of arguments with 2.75 GiB of temporaries are rejected as 15.78 GiB, the peak;
allocated sizes would sum to 15.91). What must hold: the parts add up to the peak.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.compilation import Compilation

if TYPE_CHECKING:
    from jax.stages import Compiled, Lowered

PARAMETER_FIELDS = ("trained", "frozen")  # of a training step's state


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes per device. `temporaries_bytes` is what the peak has beyond the arguments: activations, gradients,
    gathered parameters, work memory."""

    parameters_bytes: int
    optimizer_bytes: int
    other_arguments_bytes: int  # the batch; a cache
    temporaries_bytes: int
    peak_bytes: int
    code_bytes: int  # of the program itself; no part of the peak
    hbm_bytes: int
    host_bytes: int  # of the host's memory for this device: what is offloaded

    @property
    def share(self) -> float:
        """Of the device's memory, what the peak takes; above 1 the program does not fit."""
        return self.peak_bytes / self.hbm_bytes


def device_memory(compilation: Compilation, chip: Chip) -> DeviceMemory:
    """The memory of a program that was compiled."""
    parameters, optimizer = (compilation.argument_bytes.get(name, 0) for name in ("params", "opt_state"))
    return DeviceMemory(
        parameters_bytes=parameters,
        optimizer_bytes=optimizer,
        other_arguments_bytes=compilation.all_argument_bytes - parameters - optimizer,
        temporaries_bytes=compilation.peak_bytes - compilation.all_argument_bytes,
        peak_bytes=compilation.peak_bytes,
        code_bytes=compilation.code_bytes,
        hbm_bytes=chip.hbm_bytes,
        host_bytes=compilation.host_bytes,
    )


def known_argument_bytes(lowered: "Lowered", num_devices: int) -> dict[str, int]:
    """Bytes per device of a program's arguments by the first field name on their path, before it is compiled.

    A training step's state is known from its result, which says how it is sharded; on one device everything is known
    from the arguments.
    """
    import jax

    if num_devices == 1:
        leaves = [(path, info.shape, info) for path, info in jax.tree_util.tree_leaves_with_path(lowered.args_info)]
    else:
        results = jax.tree_util.tree_leaves_with_path(lowered.out_info)
        leaves = [(path, info.sharding.shard_shape(info.shape), info) for path, info in results if info.sharding]
    return _by_field(leaves)


def argument_bytes(compiled: "Compiled") -> dict[str, int]:
    """Bytes per device of the arguments, by the first field name on their path; `params` for parameters, trained and
    frozen, and for a first argument without field names."""
    import jax

    arguments = jax.tree_util.tree_leaves_with_path(compiled.args_info)
    shardings = jax.tree.leaves(compiled.input_shardings)
    assert len(arguments) == len(shardings), f"{len(arguments)} arguments, {len(shardings)} shardings"
    pairs = zip(arguments, shardings, strict=True)
    return _by_field((path, sharding.shard_shape(info.shape), info) for (path, info), sharding in pairs)


def _by_field(leaves: Iterable[tuple[Any, tuple[int, ...], Any]]) -> dict[str, int]:
    """Sums of (path, a device's shape, something with a dtype)."""
    sizes: dict[str, int] = {}
    for path, shape, info in leaves:
        # An argument's path begins with args or kwargs, then the argument
        is_first = len(path) > 1 and getattr(path[1], "idx", None) == 0
        fields = (str(key.name) for key in path if hasattr(key, "name"))
        name = next(fields, "params" if is_first else "")
        name = "params" if name in PARAMETER_FIELDS else name
        sizes[name] = sizes.get(name, 0) + math.prod(shape) * info.dtype.itemsize
    return sizes
