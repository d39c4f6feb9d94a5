"""Which of the kernels for CPUs this process has: those that run on this machine."""

import functools
import importlib
import threading
from typing import Literal, get_args

import jax

# Modules with `runs_here`, and `handler` of the kernel's options
type CpuKernel = Literal["vnni", "float_strips", "paged_cpu", "untouched"]
_REGISTERING = threading.Lock()  # of two engines that start at once


def target_of(kernel: CpuKernel, *options: int) -> str:
    """What XLA calls a kernel."""
    return "_".join(map(str, ("lifecycle", kernel, *options)))


def has_kernel(kernel: CpuKernel, *options: int) -> bool:
    """Whether there is a kernel; registers it if so."""
    with _REGISTERING:
        return _is_registered(kernel, *options)


@functools.cache
def _is_registered(kernel: CpuKernel, *options: int) -> bool:
    assert kernel in get_args(CpuKernel.__value__)
    module = importlib.import_module(f"lifecycle.kernels.{kernel}")
    if not module.runs_here():
        return False
    jax.ffi.register_ffi_target(target_of(kernel, *options), module.handler(*options), platform="cpu")
    return True
