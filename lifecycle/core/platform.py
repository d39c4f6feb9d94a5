"""For which kind of device a program is made: the mesh's in scope, else the process's default.

A program for TPUs is traced and compiled on machines without one, where `jax.default_backend()` says "cpu".
"""

import jax

# By the devices' kind: KiB of VMEM that one fusion may use. With more than the default, products keep larger blocks at
# hand: a fifth of the 8B model's cycles on a v5p. Beyond these, one large product gained nothing more; a v4's does not
# gain at all.
SCOPED_VMEM_KIB = {"TPU v5": 65536, "TPU v5 lite": 81920, "TPU v6 lite": 98304, "TPU7x": 65536}


def platform() -> str:
    """What the current trace is for: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def device_kind() -> str:
    """Which device it is for, as `jax.Device.device_kind` names it."""
    return (jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]).device_kind


def compiler_options(device_kind: str) -> dict[str, str]:
    """What a program for such devices is compiled with, in training as in a plan."""
    limit = SCOPED_VMEM_KIB.get(device_kind)
    return {} if limit is None else {"xla_tpu_scoped_vmem_limit_kib": str(limit)}
