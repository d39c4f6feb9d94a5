"""Zeros that take no memory on CPUs until something is written: a KV cache has pages that no request may ever use.

XLA writes a result of zeros: 3 GB of them, eight contexts of 8,192 tokens of SmolLM2-135M, in 2.0 CPU-seconds. Here a
handler of XLA's foreign function interface gives the result's memory back to Linux, which takes none for it before it
is written, and reads as zeros until then (madvise(2), MADV_DONTNEED on private anonymous memory).
"""

import functools
import importlib.util
import mmap
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Shaped

NAME = "lifecycle_untouched"  # what XLA calls the handler, with the bytes of an element behind it
DONTNEED = 4  # <sys/mman.h>
_REGISTERING = threading.Lock()  # of two engines that start at once


def untouched_zeros(shape: tuple[int, ...], dtype: Any) -> Shaped[Array, "*dims"]:
    """`jnp.zeros` for a program of one device; where the CPU's memory cannot be left untouched, it is written."""
    size = jnp.dtype(dtype).itemsize
    if platform() != "cpu" or not _is_registered(size):
        return jnp.zeros(shape, dtype)
    # without a side effect XLA would make one of several that are alike, and copy it
    return jax.ffi.ffi_call(f"{NAME}_{size}", jax.ShapeDtypeStruct(shape, dtype), has_side_effect=True)()


def _is_registered(size: int) -> bool:
    with _REGISTERING:
        return _register(size)


@functools.cache
def _register(size: int) -> bool:
    if sys.platform != "linux" or importlib.util.find_spec("llvmlite") is None:
        return False
    jax.ffi.register_ffi_target(f"{NAME}_{size}", _handler(size), platform="cpu")
    return True


def _handler(size: int) -> Any:
    from llvmlite import ir

    from lifecycle.kernels.machine_code import DATA, DIMS, INT, POINTER, RANK, RESULTS, WORD, compiled, handler_of, word

    module = ir.Module("untouched zeros")
    b, frame, nothing = handler_of(module)
    out = b.pointer(b.pointer(frame, RESULTS), 0)
    count = b.variable(WORD, word(size))
    with b.loop(b.get(out, RANK)) as dim:
        b.store(b.mul(b.load(count, typ=WORD), b.get(b.pointer(out, DIMS), dim)), count)
    start, length = b.get(out, DATA), b.load(count, typ=WORD)
    end, mask = b.add(start, length), word(-mmap.PAGESIZE)
    first, last = b.and_(b.add(start, word(mmap.PAGESIZE - 1)), mask), b.and_(end, mask)

    def fill(begin: Any, until: Any) -> None:
        b.intrinsic("memset", POINTER, b.inttoptr(begin, POINTER), ir.Constant(INT, 0), b.sub(until, begin))

    with b.if_else(b.icmp_unsigned("<", first, last)) as (has_pages, has_none):
        with has_pages:
            fill(start, first)
            fill(last, end)
            pages = b.inttoptr(first, POINTER), b.sub(last, first), ir.Constant(INT, DONTNEED)
            is_refused = b.icmp_signed("!=", b.intrinsic("madvise", INT, *pages), ir.Constant(INT, 0))
            with b.if_then(is_refused):  # of memory that is locked
                fill(first, last)
        with has_none:
            fill(start, end)
    b.ret(nothing)
    return compiled(module)
