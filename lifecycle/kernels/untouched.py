"""Zeros that take no memory on CPUs until something is written: a KV cache has pages that no request may ever use.

XLA writes a result of zeros: 3 GB of them, eight contexts of 8,192 tokens of SmolLM2-135M, in 2.0 CPU-seconds. Here a
handler of XLA's foreign function interface gives the result's memory back to Linux, which takes none for it before it
is written, and reads as zeros until then (madvise(2), MADV_DONTNEED on private anonymous memory).
"""

import mmap
import sys
from typing import Any

import jax
import jax.numpy as jnp
from llvmlite import ir

from lifecycle.core.typing import Array, Shaped
from lifecycle.kernels.cpu_kernels import target_of
from lifecycle.kernels.machine_code import DATA, DIMS, INT, POINTER, RANK, RESULTS, WORD, compiled, handler_of, word

DONTNEED = 4  # <sys/mman.h>


def runs_here() -> bool:
    """Whether this is Linux."""
    return sys.platform == "linux"


def untouched_zeros(shape: tuple[int, ...], dtype: Any) -> Shaped[Array, "*dims"]:
    """`jnp.zeros`, in a program of one device, that has the kernel for the dtype's size in bytes."""
    target = target_of("untouched", jnp.dtype(dtype).itemsize)
    # without a side effect XLA would make one of several that are alike, and copy it
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, dtype), has_side_effect=True)()


def handler(size: int) -> Any:
    """The handler for elements of so many bytes, as `jax.ffi.register_ffi_target` takes it."""
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
