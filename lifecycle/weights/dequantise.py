"""Dequantises GGML's blocks, a full matrix at a time.

A row is divided into blocks of 32 or 256 values; a block holds small integers and their scales. Layouts as in ggml's
`ggml-common.h` and `ggml-quants.c` (block_q4_0 ... block_q6_K). What must hold: the same float32 values, bit for bit,
as ggml's reference computes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

type Blocks = np.ndarray  # [number of blocks, bytes of one], uint8
type Values = np.ndarray  # [number of blocks, values of one], float32


@dataclass(frozen=True)
class Encoding:
    """How a GGML type stores values: `values` of them in `num_bytes` bytes."""

    name: str
    values: int
    num_bytes: int
    decode: Callable[[Blocks], Values]


def _plain(dtype: type) -> Callable[[Blocks], Values]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


def _half(blocks: Blocks, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block, `[N, 1]`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low halves of all bytes, then their high halves, `[..., 2 n]`."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def _q8_0(blocks: Blocks) -> Values:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Blocks) -> Values:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Values:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q4_k(blocks: Blocks) -> Values:
    """Eight sub-blocks of 32; their 6-bit scales and minima share 12 bytes."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 0x0F) | (low >> 6 << 4)], axis=1).astype(np.float32)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1).astype(np.float32)
    values = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    steps, offsets = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (steps[..., None] * values - offsets[..., None]).reshape(-1, 256)


def _q6_k(blocks: Blocks) -> Values:
    """Sixteen sub-blocks of 16; the low four bits of each value are in one array, its high two in another."""
    low = blocks[:, :128].reshape(-1, 2, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    values = _nibbles(low).reshape(-1, 2, 4, 32) | ((high >> shifts & 3) << 4)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    steps = _half(blocks, 208) * scales
    return (steps[..., None] * (values.astype(np.float32).reshape(-1, 16, 16) - 32)).reshape(-1, 256)


# By the numbers of `enum ggml_type`.
ENCODINGS: dict[int, Encoding] = {
    0: Encoding("F32", 1, 4, _plain(np.float32)),
    1: Encoding("F16", 1, 2, _plain(np.float16)),
    2: Encoding("Q4_0", 32, 18, _q4_0),
    3: Encoding("Q4_1", 32, 20, _q4_1),
    8: Encoding("Q8_0", 32, 34, _q8_0),
    12: Encoding("Q4_K", 256, 144, _q4_k),
    14: Encoding("Q6_K", 256, 210, _q6_k),
    30: Encoding("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}


def dequantise(data: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The values, flat and in float32, of complete blocks given as bytes."""
    return encoding.decode(data.reshape(-1, encoding.num_bytes)).reshape(-1)
