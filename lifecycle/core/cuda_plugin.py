"""JAX's plugin for CUDA on a machine without a GPU.

The extra `gpu-compiler` installs the plugin to compile for GPUs that are not here, without CUDA's libraries. JAX starts
every plugin that is installed; without the libraries this one fails, JAX logs that with its stack, in each process, and
takes other devices. What must hold: where there is a GPU, or CUDA was asked for, the failure is shown.
"""

import logging
import os
from pathlib import Path

MODULE = "jax_plugins.xla_cuda"  # with CUDA's version behind it
LOGGER = "jax._src.xla_bridge"
# NVIDIA's driver; on its boards with a GPU in the chip; Windows's, in its Linux
DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "dxg")


def silence_without_gpu() -> None:
    """Leaves that failure out of JAX's log, unless it means something. Imports no JAX."""
    logging.getLogger(LOGGER).addFilter(_is_worth_showing)


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there may be an NVIDIA GPU: its driver has device files."""
    return any(True for pattern in DEVICES for _ in devices.glob(pattern))


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return MODULE not in record.getMessage() or has_gpu() or bool(os.environ.get("JAX_PLATFORMS"))
