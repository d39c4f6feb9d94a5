"""Zeros that are zeros in whatever memory they lie, and take none before they are written."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.untouched import untouched_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems write zeros")
LARGE = 1 << 28  # bytes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8_e4m3fn"])
def test_they_are_zeros_also_where_something_else_has_lain(dtype: str) -> None:
    assert has_kernel("untouched", jnp.dtype(dtype).itemsize)
    shapes = [(1,), (3, 5), (1000, 7), (3, 100, 100)]
    zeros = jax.jit(lambda: [untouched_zeros(shape, dtype) for shape in shapes])
    for _ in range(20):
        before = [jnp.full(shape, 3, dtype) for shape in shapes]
        jax.block_until_ready(before)
        del before
        for found, shape in zip(zeros(), shapes, strict=True):
            assert found.shape == shape and found.dtype == dtype
            assert (np.asarray(found.astype(jnp.float32)) == 0).all()


def test_they_take_memory_when_they_are_written() -> None:
    assert has_kernel("untouched", 4)
    write = jax.jit(lambda x: x.at[-1].set(1), donate_argnums=0)
    make = jax.jit(lambda: untouched_zeros((LARGE >> 2,), "float32"))
    before = resident_bytes()
    found = write(jax.block_until_ready(make()))
    assert float(found[-1]) == 1 and float(found[0]) == 0
    assert resident_bytes() - before < LARGE // 4
