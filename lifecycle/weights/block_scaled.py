"""Published weights in blocks that share a scale, dequantised: MXFP4 (gpt-oss) and FP8 in squares (DeepSeek V3).

MXFP4 (Open Compute Project, "Microscaling formats", 2023, section 5.3): 32 values of four bits and one exponent; two
values per byte, the first in the low half. A tensor `X [E, in, out]` is stored as `X_blocks [E, out, in / 32, 16]` and
`X_scales [E, out, in / 32]`. FP8 (DeepSeek-V3, section 3.3.2): a matrix `X` of float8 (e4m3) with a float32 for each
128 x 128 square in `X_scale_inv`. What must hold: the values equal those of transformers, for every part.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from lifecycle.weights.families.layout import Index, Shape, TensorSource
from lifecycle.weights.families.settings import WeightsError

BLOCKS, SCALES, SQUARES = "_blocks", "_scales", "_scale_inv"
GROUP, SIDE = 32, 128
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
EXPONENT_BIAS = 127
NUMBERS = ("float32", "float16", "bfloat16")  # dtypes that need no scale


class BlockScaled:
    """A `TensorSource` over another, with dequantised tensors under their plain names.

    Raises `WeightsError` for a tensor whose dtype needs scales (not in `NUMBERS`) and that has none.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        stored = source.shapes
        self._shapes: dict[str, Shape] = {}
        self._packed = {name.removesuffix(BLOCKS) for name in stored if name.endswith(BLOCKS)}
        self._squares = {name for name in stored if name + SQUARES in stored}
        hidden = {name + end for name in self._packed for end in (BLOCKS, SCALES)}
        hidden |= {name + SQUARES for name in self._squares}
        for name in self._packed:
            experts, outputs, groups, _ = stored[name + BLOCKS]
            if stored.get(name + SCALES) != (experts, outputs, groups):
                raise WeightsError(f"{name}{BLOCKS} has no {name}{SCALES} that fits it; copy all of the files again")
            self._shapes[name] = (experts, groups * GROUP, outputs)
        for name in self._squares:
            if stored[name + SQUARES] != tuple(-(-size // SIDE) for size in stored[name]):
                raise WeightsError(
                    f"{name}{SQUARES} has shape {stored[name + SQUARES]}: not one for each {SIDE} x {SIDE}"
                )
        plain = {name: shape for name, shape in stored.items() if name not in hidden}
        for name in plain:
            if name not in self._squares and source.dtype(name).name not in NUMBERS:
                raise WeightsError(
                    f"tensor {name} is of dtype {source.dtype(name).name} without scales; weights are read from "
                    f"{', '.join(NUMBERS)}: convert quantised ones to one of these"
                )
        self._shapes |= plain

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The dequantised tensors' shapes."""
        return self._shapes

    def dtype(self, name: str) -> np.dtype:
        """The dtype to store a tensor in; for quantised ones the dtype to which their publishers unpack them."""
        return BFLOAT16 if name in self._packed or name in self._squares else self._source.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, dequantised."""
        if name in self._packed:
            return self._unpacked(name, index)
        values = self._source.read(name, index)
        return values if name not in self._squares else values.astype(np.float32) * self._square_scales(name, index)

    def _unpacked(self, name: str, index: Index) -> np.ndarray:
        experts, inputs, outputs = index
        groups = slice(inputs.start // GROUP, -(-inputs.stop // GROUP))
        packed = self._source.read(name + BLOCKS, (experts, outputs, groups, slice(0, GROUP // 2)))
        exponents = self._source.read(name + SCALES, (experts, outputs, groups)).astype(np.int32) - EXPONENT_BIAS
        values = np.stack([FP4[packed & 0x0F], FP4[packed >> 4]], axis=-1).reshape(*packed.shape[:-1], GROUP)
        values = np.ldexp(values, exponents[..., None]).reshape(*packed.shape[:2], -1)
        first = groups.start * GROUP
        return values[..., inputs.start - first : inputs.stop - first].swapaxes(1, 2)

    def _square_scales(self, name: str, index: Index) -> np.ndarray:
        squares = tuple(slice(part.start // SIDE, -(-part.stop // SIDE)) for part in index)
        scales = self._source.read(name + SQUARES, squares)
        for dim, (part, square) in enumerate(zip(index, squares, strict=True)):
            first = square.start * SIDE
            scales = scales.repeat(SIDE, axis=dim)
            scales = scales[(slice(None),) * dim + (slice(part.start - first, part.stop - first),)]
        return scales
