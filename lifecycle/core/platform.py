"""For which kind of device the current trace is: the mesh's in scope, else the process's default.

A program for TPUs is traced on machines without one, where `jax.default_backend()` says "cpu".
"""

import jax


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)
