"""Published matrices of small integers, dequantised: GPTQ, AWQ and compressed-tensors.

Integers of 4 or 8 bits are packed in int32, the first in the lowest bits; `groups` of inputs share a scale and a zero.
For a matrix `X [out, in]`, with `n` integers in an int32:

| format | integers | zeros | scales |
|---|---|---|---|
| GPTQ | `X.qweight [in / n, out]` | `X.qzeros [groups, out / n]`, less one | `X.scales [groups, out]` |
| AWQ | `X.qweight [in, out / n]`, columns as in `ORDER` | `X.qzeros`, likewise | `X.scales [groups, out]` |
| compressed-tensors | `X.weight_packed [out, in / n]` | `X.weight_zero_point [out / n, groups]` | see below |
| its plain 8 bits | `X.weight [out, in]`, int8 or float8 | `X.weight_zero_point [out, groups]` | see below |

The scales of compressed-tensors are `X.weight_scale [out, groups]`; without zeros, those are half of the range, or 0.
GPTQ and compressed-tensors may also say each input's group (`g_idx`). Sources: AutoGPTQ 0.7.1, `qlinear_cuda.py`;
AutoAWQ 0.2.9, `packing_utils.py`; compressed-tensors 0.20, `pack_quantized`, `naive_quantized`. What must hold: the
values are theirs, for every part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from lifecycle.weights.families.layout import Index, Shape, TensorSource
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.tensor_parts import full_index

WORD = 32  # bits
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where AWQ's packed integers have each column
QWEIGHT, PACKED, SCALE, SHAPE = ".qweight", ".weight_packed", ".weight_scale", ".weight_shape"
PLAIN = (np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn))

type Part = Callable[[slice, slice], np.ndarray]  # of a matrix's outputs and inputs, in float32


@dataclass(frozen=True)
class Matrix:
    """A matrix's shape and dtype when dequantised, the tensors it is made of, and how a part of it is read."""

    shape: Shape
    dtype: np.dtype
    tensors: tuple[str, ...]
    part: Part


class PackedIntegers:
    """A `TensorSource` over another, with dequantised matrices under their plain names; others pass through.

    Raises `WeightsError` for a matrix whose tensors do not fit each other. A bias of a GPTQ matrix that is all zeros,
    which AutoGPTQ writes for every one, is left out.
    """

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        stored = source.shapes
        ends = {QWEIGHT: self._of_qweight, PACKED: self._of_packed, SCALE: self._of_plain}
        self._matrices: dict[str, Matrix] = {}
        for end, matrix_of in ends.items():
            for name in (name.removesuffix(end) for name in stored if name.endswith(end)):
                if f"{name}.weight" not in self._matrices:
                    self._matrices[f"{name}.weight"] = matrix_of(name)
        hidden = {tensor for matrix in self._matrices.values() for tensor in matrix.tensors}
        self._shapes = {name: shape for name, shape in stored.items() if name not in hidden}
        self._shapes |= {name: matrix.shape for name, matrix in self._matrices.items()}

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The dequantised matrices' shapes, and those of the other tensors."""
        return self._shapes

    def dtype(self, name: str) -> np.dtype:
        """The dtype to store a tensor in: of a dequantised one, its scales'."""
        return self._matrices[name].dtype if name in self._matrices else self._source.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, dequantised to float32."""
        return self._matrices[name].part(*index) if name in self._matrices else self._source.read(name, index)

    def _of_qweight(self, name: str) -> Matrix:
        parts = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx", "bias")]
        weight, zeros, scales, groups, bias = parts
        self._require(name, weight, zeros, scales)
        shapes = self._source.shapes
        num_groups, outputs = shapes[scales]
        is_gptq = shapes[weight][1] == outputs
        bits = WORD * shapes[zeros][1] // outputs
        inputs = shapes[weight][0] * (WORD // bits if is_gptq and bits else 1)
        expected = (inputs * bits // WORD, outputs) if is_gptq else (inputs, outputs * bits // WORD)
        if bits not in (4, 8) or shapes[weight] != expected or (not is_gptq and bits != 4) or inputs % num_groups:
            raise WeightsError(
                f"{name}: integers {shapes[weight]}, zeros {shapes[zeros]} and scales {shapes[scales]} are neither "
                "GPTQ of 4 or 8 bits nor AWQ of 4; use the model in bfloat16"
            )
        used = [weight, zeros, scales, *([groups] if groups in shapes else [])]
        if bias in shapes and not self._read(bias).any():
            used.append(bias)
        read = self._gptq if is_gptq else self._awq
        where = self._groups(groups, inputs, num_groups)
        part = partial(read, weight, zeros, scales, bits, where)
        return Matrix((outputs, inputs), self._source.dtype(scales), tuple(used), part)

    def _gptq(
        self, weight: str, zeros: str, scales: str, bits: int, where: np.ndarray, outputs: slice, inputs: slice
    ) -> np.ndarray:
        groups, own = slice(0, self._source.shapes[scales][0]), where[inputs]
        integers = self._unpacked(weight, bits, 0, (inputs, outputs))
        offsets = self._unpacked(zeros, bits, 1, (groups, outputs)) + 1 & (1 << bits) - 1
        scale = self._source.read(scales, (groups, outputs)).astype(np.float32)
        return ((integers - offsets[own]).astype(np.float32) * scale[own]).T

    def _awq(
        self, weight: str, zeros: str, scales: str, bits: int, where: np.ndarray, outputs: slice, inputs: slice
    ) -> np.ndarray:
        groups, own = slice(0, self._source.shapes[scales][0]), where[inputs]
        whole = slice(outputs.start // 8 * 8, -(-outputs.stop // 8) * 8)
        here = slice(outputs.start - whole.start, outputs.stop - whole.start)

        def ordered(name: str, rows: slice) -> np.ndarray:
            values = self._unpacked(name, bits, 1, (rows, whole))
            return values.reshape(len(values), -1, 8)[..., ORDER].reshape(len(values), -1)[:, here]

        scale = self._source.read(scales, (groups, outputs)).astype(np.float32)
        return ((ordered(weight, inputs) - ordered(zeros, groups)[own]).astype(np.float32) * scale[own]).T

    def _of_packed(self, name: str) -> Matrix:
        weight, shape, scales, zeros, groups = (
            name + end for end in (PACKED, SHAPE, SCALE, ".weight_zero_point", ".weight_g_idx")
        )
        self._require(name, weight, shape, scales)
        shapes = self._source.shapes
        outputs, inputs = map(int, self._read(shape))
        bits = WORD * shapes[weight][1] // inputs
        num_groups = shapes[scales][1]
        if bits not in (4, 8) or shapes[weight] != (outputs, -(-inputs * bits // WORD)) or inputs % num_groups:
            raise WeightsError(
                f"{name}: integers {shapes[weight]} and scales {shapes[scales]} for a matrix {(outputs, inputs)}, of 4 "
                "or 8 bits only; use the model in bfloat16"
            )
        has_zeros = zeros in shapes
        used = (weight, shape, scales, *(tensor for tensor in (zeros, groups) if tensor in shapes))
        where = self._groups(groups, inputs, num_groups)
        part = partial(self._pack_quantised, weight, scales, zeros if has_zeros else None, bits, where)
        return Matrix((outputs, inputs), self._source.dtype(scales), used, part)

    def _pack_quantised(
        self, weight: str, scales: str, zeros: str | None, bits: int, where: np.ndarray, outputs: slice, inputs: slice
    ) -> np.ndarray:
        groups, own = slice(0, self._source.shapes[scales][1]), where[inputs]
        integers = self._unpacked(weight, bits, 1, (outputs, inputs))
        half = np.full((1, groups.stop), 1 << bits - 1, np.int32)
        offsets = half if zeros is None else self._unpacked(zeros, bits, 0, (outputs, groups))
        scale = self._source.read(scales, (outputs, groups)).astype(np.float32)
        return (integers - offsets[:, own]).astype(np.float32) * scale[:, own]

    def _of_plain(self, name: str) -> Matrix:
        weight, scales, zeros = (name + end for end in (".weight", SCALE, ".weight_zero_point"))
        self._require(name, weight, scales)
        shapes = self._source.shapes
        outputs, inputs = shapes[weight]
        rows, groups = (*shapes[scales], 1, 1)[:2]
        grid = (int(rows), int(groups))
        if self._source.dtype(weight) not in PLAIN or grid[0] not in (1, outputs) or inputs % grid[1]:
            raise WeightsError(
                f"{name}.weight: {self._source.dtype(weight).name} {shapes[weight]} with scales {shapes[scales]} is "
                "not int8 or float8 with one for each row or group; use the model in bfloat16"
            )
        used = (weight, scales, *(tensor for tensor in (zeros, f"{name}.input_scale") if tensor in shapes))
        part = partial(self._plain, weight, scales, zeros if zeros in shapes else None, grid)
        return Matrix(shapes[weight], self._source.dtype(scales), used, part)

    def _plain(
        self, weight: str, scales: str, zeros: str | None, grid: tuple[int, int], outputs: slice, inputs: slice
    ) -> np.ndarray:
        own = self._groups("", self._source.shapes[weight][1], grid[1])[inputs]
        rows = outputs if grid[0] > 1 else slice(0, 1)

        def spread(name: str) -> np.ndarray:
            return self._read(name).astype(np.float32).reshape(grid)[rows][:, own]

        values = self._source.read(weight, (outputs, inputs)).astype(np.float32)
        return (values - (0 if zeros is None else spread(zeros))) * spread(scales)

    def _require(self, name: str, *tensors: str) -> None:
        if missing := [tensor for tensor in tensors if tensor not in self._source.shapes]:
            raise WeightsError(f"{name}: quantised without {', '.join(missing)}; copy all of the files again")

    def _read(self, name: str) -> np.ndarray:
        return self._source.read(name, full_index(self._source.shapes[name]))

    def _groups(self, name: str, inputs: int, num_groups: int) -> np.ndarray:
        """The group of each input: as a tensor says, else consecutive ones."""
        usual = np.arange(inputs) // (inputs // num_groups)
        return self._read(name) if name in self._source.shapes else usual

    def _unpacked(self, name: str, bits: int, dim: int, index: tuple[slice, slice]) -> np.ndarray:
        """A part of a matrix of integers that is packed along `dim`, as int32."""
        count, wanted = WORD // bits, index[dim]
        words = slice(wanted.start // count, -(-wanted.stop // count))
        packed = self._source.read(name, (words, index[1]) if dim == 0 else (index[0], words)).view(np.uint32)
        shifts = np.arange(0, WORD, bits, dtype=np.uint32)
        values = np.moveaxis(packed, dim, -1)[..., None] >> shifts & np.uint32((1 << bits) - 1)
        values = values.reshape(*values.shape[:-2], -1)[..., wanted.start - words.start * count :]
        return np.moveaxis(values[..., : wanted.stop - wanted.start].astype(np.int32), -1, dim)
