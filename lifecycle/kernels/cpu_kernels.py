"""Which of the kernels for CPUs this process has: those whose instructions the processor has, if LLVM is there to make
them, from the extra `cpu-kernels`."""

import functools
import importlib
import importlib.util
import threading
from typing import Literal, get_args

import jax

type CpuKernel = Literal["vnni", "float_strips", "paged_cpu"]  # modules with `has_instructions` and `handler`
_REGISTERING = threading.Lock()  # of two engines that start at once


def target_of(kernel: CpuKernel) -> str:
    """What XLA calls a kernel."""
    return f"lifecycle_{kernel}"


def has_kernel(kernel: CpuKernel) -> bool:
    """Whether there is a kernel; registers it if so."""
    with _REGISTERING:
        return _is_registered(kernel)


@functools.cache
def _is_registered(kernel: CpuKernel) -> bool:
    assert kernel in get_args(CpuKernel.__value__)
    if importlib.util.find_spec("llvmlite") is None:
        return False
    module = importlib.import_module(f"lifecycle.kernels.{kernel}")
    if not module.has_instructions():
        return False
    jax.ffi.register_ffi_target(target_of(kernel), module.handler(), platform="cpu")
    return True
