"""Facts of the machine, measured: how fast it multiplies matrices and how its allocator treats large arrays."""

import os
import sys
import time
from functools import cache

import jax
import jax.numpy as jnp

HUGE_PAGES = "glibc.malloc.hugetlb=1"
PEAK_SIZE = 2048  # a float32 product of this size takes 40 ms on two AVX-512 cores and is not bound by memory


def restart_with_huge_pages() -> None:
    """On Linux, restarts this program with glibc's huge pages, once; call it before anything is done.

    XLA's CPU client frees its work memory after every step and maps it anew: 175,000 page faults and 0.3 of 1.2 CPU
    seconds in a step that uses 700 MB. With huge pages there are 700 faults. glibc reads the setting only at start.
    """
    present = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in present:
        return
    os.environ["GLIBC_TUNABLES"] = f"{present}:{HUGE_PAGES}" if present else HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@cache
def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of one large matrix product on one device, the best of eight; measured once in a process."""
    x = jnp.ones((PEAK_SIZE, PEAK_SIZE), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best
