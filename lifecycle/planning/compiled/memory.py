"""A compiled program's memory on one device, in parts that a user can change.

The compiler's peak is the largest sum of buffers that live at once, arguments included: it is what its own check for
"does it fit" uses (seen on v5e: 13 GiB of arguments with 2.75 GiB of temporaries are refused as 15.78 GiB, the peak;
allocated sizes would sum to 15.91). What must hold: the parts add up to the peak.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lifecycle.planning.chips import Chip


@dataclass(frozen=True)
class Memory:
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
        return self.peak_bytes / self.hbm_bytes


def memory_of(compiled: Any, chip: Chip) -> Memory:
    """The memory of a `jax.stages.Compiled` whose first argument is the parameters, or a state with the fields `params`
    and `opt_state`."""
    sizes = _argument_bytes(compiled)
    stats = compiled.memory_analysis()
    arguments = stats.argument_size_in_bytes
    parameters, optimizer = sizes.get("params", 0), sizes.get("opt_state", 0)
    return Memory(
        parameters_bytes=parameters,
        optimizer_bytes=optimizer,
        other_arguments_bytes=arguments - parameters - optimizer,
        temporaries_bytes=stats.peak_memory_in_bytes - arguments,
        peak_bytes=stats.peak_memory_in_bytes,
        code_bytes=stats.generated_code_size_in_bytes,
        hbm_bytes=chip.hbm_bytes,
        host_bytes=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    )


def known_bytes(lowered: Any, num_devices: int) -> dict[str, int]:
    """Bytes per device of a program's arguments by the first field name on their path, before it is compiled.

    `lowered` is a `jax.stages.Lowered`. A training step's state is known from its result, which says where it lies; on
    one device everything is known from the arguments.
    """
    import jax

    if num_devices == 1:
        leaves = [(path, info.shape, info) for path, info in jax.tree_util.tree_leaves_with_path(lowered.args_info)]
    else:
        placed = jax.tree_util.tree_leaves_with_path(lowered.out_info)
        leaves = [(path, info.sharding.shard_shape(info.shape), info) for path, info in placed if info.sharding]
    return _by_field(leaves)


def _argument_bytes(compiled: Any) -> dict[str, int]:
    """Bytes per device of the arguments, by the first field name on their path; `params` for a first argument without
    field names."""
    import jax

    shapes = jax.tree_util.tree_leaves_with_path(compiled.args_info)
    places = jax.tree.leaves(compiled.input_shardings)
    assert len(shapes) == len(places), f"{len(shapes)} arguments, {len(places)} shardings"
    leaves = ((path, place.shard_shape(info.shape), info) for (path, info), place in zip(shapes, places, strict=True))
    return _by_field(leaves)


def _by_field(leaves: Iterable[tuple[Any, tuple[int, ...], Any]]) -> dict[str, int]:
    """Sums of (path, a device's shape, something with a dtype)."""
    sizes: dict[str, int] = {}
    for path, shape, info in leaves:
        # An argument's path begins with args or kwargs, then the argument
        is_first = len(path) > 1 and getattr(path[1], "idx", None) == 0
        fields = (str(key.name) for key in path if hasattr(key, "name"))
        name = next(fields, "params" if is_first else "")
        sizes[name] = sizes.get(name, 0) + math.prod(shape) * info.dtype.itemsize
    return sizes
