"""This machine's matrix multiplication rate, measured."""

import time
from functools import cache

import jax
import jax.numpy as jnp

PEAK_SIZE = 2048  # a float32 product of this size takes 40 ms on two AVX-512 cores and is not bound by memory


@cache
def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of one large matrix product on one device, the best of three; measured once in a process."""
    x = jnp.ones((PEAK_SIZE, PEAK_SIZE), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best
