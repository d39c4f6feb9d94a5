"""Writes K-quants (Q4_K, Q5_K, Q6_K): 256 values that share float16 scales of small integer scales.

The `gguf` package only reads them. As in ggml's reference (`ggml-quants.c`, `quantize_row_q4_K_ref` and its siblings),
a sub-block's scale is the best of about twenty candidates, each improved by least squares. What must hold: the
error is the reference's. The bits are nearly always: float sums are added in another order.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

type Rows = np.ndarray  # [N, 256], float32
type Blocks = np.ndarray  # [N, bytes of one], uint8

CHUNK = 256  # super-blocks at a time: ten arrays of 256 kB, 0.8 of the seconds of 4096
TINY = np.float32(1e-15)  # ggml's GROUP_MAX_EPS: a sub-block of smaller values is all zeros


def _in_chunks(quantise: Callable[[Rows], Blocks], values: Rows) -> Blocks:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([quantise(values[at : at + CHUNK]) for at in range(0, len(values), CHUNK)])


def _per(numerator: np.ndarray | np.floating, denominator: np.ndarray) -> np.ndarray:
    """Their quotient, 0 where the denominator is."""
    return np.where(denominator == 0, np.float32(0), numerator / denominator)


def _offset_scales(x: np.ndarray, top: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The scale and minimum (>= 0) of each sub-block `[M, 32]`, so that `x` is near `scale * l - minimum` for integers
    `l` of 0 .. `top`; candidates are `top + first + 0.1 i`. A value's weight is its size plus the sub-block's."""
    weights = np.sqrt((x * x).mean(axis=1, keepdims=True)) + np.abs(x)
    offset, high = np.minimum(x.min(axis=1), 0), x.max(axis=1)
    is_flat = offset == high
    sum_w, sum_x = weights.sum(axis=1), (weights * x).sum(axis=1)

    def levels_at(most: float) -> np.ndarray:
        inverse = _per(np.float32(most), high - offset)  # each candidate starts from the best offset so far
        return np.clip(np.rint(inverse[:, None] * (x - offset[:, None])), 0, top)

    def error_of(scale: np.ndarray, offset: np.ndarray, levels: np.ndarray) -> np.ndarray:
        return (weights * (scale[:, None] * levels + offset[:, None] - x) ** 2).sum(axis=1)

    scale = (high - offset) / np.float32(top)
    error = error_of(scale, offset, levels_at(top))
    for step in range(steps + 1):
        levels = levels_at(top + first + 0.1 * step)
        weighted = weights * levels
        sum_l, sum_l2, sum_xl = weighted.sum(axis=1), (weighted * levels).sum(axis=1), (weighted * x).sum(axis=1)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        slope = _per(sum_w * sum_xl - sum_x * sum_l, determinant)
        shift = _per(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        slope, shift = np.where(shift > 0, _per(sum_xl, sum_l2), slope), np.minimum(shift, 0)
        found = error_of(slope, shift, levels)
        is_better = (determinant > 0) & (found < error)
        scale, offset = np.where(is_better, slope, scale), np.where(is_better, shift, offset)
        error = np.where(is_better, found, error)
    return np.where(is_flat, 0, scale), -offset


def _offset_quant(values: Rows, top: int, first: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(head, levels) of Q4_K and Q5_K: two float16 and twelve bytes of 6-bit scales and minima; levels `[N, 8, 32]`."""
    x = values.reshape(-1, 8, 32)
    scales, minima = (part.reshape(-1, 8) for part in _offset_scales(x.reshape(-1, 32), top, first, steps))
    most = [part.max(axis=1, keepdims=True) for part in (scales, minima)]
    small = [
        np.clip(np.rint(part * _per(np.float32(63), whole)), 0, 63).astype(np.uint8)
        for part, whole in zip((scales, minima), most, strict=True)
    ]
    halves = [(whole / 63).astype(np.float16) for whole in most]
    step, minimum = (half.astype(np.float32) * part for half, part in zip(halves, small, strict=True))
    levels = np.clip(np.rint(_per(x + minimum[..., None], np.repeat(step[..., None], 32, axis=2))), 0, top)
    head = np.concatenate([*(half.view(np.uint8) for half in halves), _six_bits(*small)], axis=1)
    return head, levels.astype(np.uint8)


def _six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima in twelve bytes: the first four of each whole, with the upper bits of the last
    four; the lower four bits of these in pairs."""
    low = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    middle = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    return np.concatenate([low, middle, (scales[:, 4:] & 0x0F) | (minima[:, 4:] & 0x0F) << 4], axis=1)


def _pairs(levels: np.ndarray, size: int) -> np.ndarray:
    """Four bits of each value: of every two runs of `size`, the first in the low halves of bytes, the other in the
    high ones."""
    runs = (levels & 0x0F).reshape(len(levels), -1, 2, size)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(levels), -1)


def _q4_k(values: Rows) -> Blocks:
    head, levels = _offset_quant(values, top=15, first=-1.0, steps=20)
    return np.concatenate([head, _pairs(levels, 32)], axis=1)


def _q5_k(values: Rows) -> Blocks:
    head, levels = _offset_quant(values, top=31, first=-0.5, steps=15)
    fifth = np.packbits((levels >> 4).swapaxes(1, 2), axis=2, bitorder="little").reshape(-1, 32)
    return np.concatenate([head, fifth, _pairs(levels, 32)], axis=1)


def _signed_scales(x: np.ndarray, most: int) -> np.ndarray:
    """The scale of each sub-block `[M, 16]`, so that `x` is near `scale * l` for integers `l` of -`most` .. `most` - 1;
    larger values weigh more, by their square."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)[:, 0]
    weights = x * x

    def sums(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        levels = np.clip(np.rint(inverse[:, None] * x), -most, most - 1)
        weighted = weights * levels
        return (weighted * x).sum(axis=1), (weighted * levels).sum(axis=1)

    sum_xl, sum_l2 = sums(-most / largest)
    scale = _per(sum_xl, sum_l2)
    best = scale * sum_xl
    for step in (*range(-9, 0), *range(1, 10)):
        sum_xl, sum_l2 = sums(-(most + np.float32(0.1) * step) / largest)
        is_better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale = np.where(is_better, _per(sum_xl, sum_l2), scale)
        best = np.where(is_better, scale * sum_xl, best)
    return np.where(np.abs(largest) < TINY, 0, scale)


def _q6_k(values: Rows) -> Blocks:
    x = values.reshape(-1, 16, 16)
    scales = _signed_scales(x.reshape(-1, 16), 32).reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1, keepdims=True), axis=1)
    inverse = np.where(np.abs(largest) < TINY, 0, _per(np.full_like(largest, -128), largest))
    half = _per(np.ones_like(inverse), inverse).astype(np.float16)
    small = np.clip(np.rint(inverse * scales), -128, 127).astype(np.int8)
    step = half.astype(np.float32) * small
    levels = np.clip(np.rint(_per(x, np.repeat(step[..., None], 16, axis=2))), -32, 31).astype(np.int8) + 32
    halves = levels.astype(np.uint8).reshape(-1, 2, 4, 32)  # of each half, four runs of 32
    low = (halves[:, :, :2] & 0x0F) | (halves[:, :, 2:] & 0x0F) << 4
    upper = halves >> 4
    high = upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6
    parts = (low.reshape(-1, 128), high.reshape(-1, 64), small.view(np.uint8), half.view(np.uint8))
    return np.concatenate(parts, axis=1)


K_QUANTS: Mapping[str, Callable[[Rows], Blocks]] = {
    name: partial(_in_chunks, quantise) for name, quantise in (("Q4_K", _q4_k), ("Q5_K", _q5_k), ("Q6_K", _q6_k))
}
