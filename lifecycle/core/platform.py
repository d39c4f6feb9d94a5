"""The kind of device that a program is traced for: that of the mesh in scope, else the process's default.

Programs for TPUs are traced and compiled on machines without one, where `jax.default_backend()` returns "cpu".
"""

import jax

# JAX has two names for some chips (its `jax/_src/tpu_info.py` accepts both); `kind_of` gives the one on the right.
SAME_KIND = {"TPU v5p": "TPU v5", "TPU v5e": "TPU v5 lite", "TPU v6e": "TPU v6 lite"}
# By the devices' kind: KiB of VMEM that one fusion may use. With more than the default, products keep larger blocks,
# which saves a fifth of the 8B model's cycles on a v5p. Above these values, one large product gained nothing more; on a
# v4 it gains nothing at all.
SCOPED_VMEM_KIB = {"TPU v5": 65536, "TPU v5 lite": 81920, "TPU v6 lite": 98304, "TPU7x": 65536}
# Without it a v5e gathers small shards, as attention's matrices have in 8 bits, by all-reduces of zero-filled arrays:
# twice the traffic, and passes that write zeros, 98.8 M of the 1,407 M cycles of Llama 2 7B's step in int8.
GATHERS = {"TPU v5 lite": {"xla_tpu_prefer_async_allgather_to_allreduce": "true"}}


def platform() -> str:
    """The platform of the current trace: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def device_kind() -> str:
    """The kind of device of the current trace, as `kind_of` names it."""
    return kind_of((jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]).device_kind)


def kind_of(device_kind: str) -> str:
    """The canonical name of a kind of device: `jax.Device.device_kind` has two for some chips."""
    return SAME_KIND.get(device_kind, device_kind)


def compiler_options(device_kind: str) -> dict[str, str]:
    """Compiler options for programs on devices of this kind, the same in training and in a plan."""
    if not device_kind.startswith("TPU"):
        return {}
    # With host memory in use the compiler peels a loop's first iteration to start copies early, and writes its slice of
    # every saved stack as a full padded stack: 95 M of the 8B model's 3,124 M cycles for each stack that is 14,336
    # wide.
    options = {"xla_tpu_pipeline_memory_host_transfers": "false"}
    options |= GATHERS.get(kind_of(device_kind), {})
    limit = SCOPED_VMEM_KIB.get(kind_of(device_kind))
    return options if limit is None else options | {"xla_tpu_scoped_vmem_limit_kib": str(limit)}
