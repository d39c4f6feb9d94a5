"""FLOPs of matrix products in a compiled module: `dot`; `convolution`, into which the TPU compiler turns products; and
calls of cuBLASLt, into which the GPU compiler turns some (the others are dots in fusions that Triton compiles).

A product's batch dimensions become a convolution's spatial ones, with padding or dilation that excludes everything
outside the product. So only pairs of an output position and a window position that hit an input element are counted, as
in XLA's own analysis (openxla.org/xla/operation_semantics#conv_convolution).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from lifecycle.planning.compiled.hlo import BITS, Computation, Instruction, Shape

_CUBLAS = 'custom_call_target="__cublas$'  # also of 8-bit floats: `__cublas$lt$matmul$f8`
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')


def product_flops(instruction: Instruction, within: Computation, is_narrow: bool = False) -> float:
    """FLOPs (two per multiply-add) of one instruction; 0 if it is not a matrix product, or, with `is_narrow`, not
    one of 8-bit values."""
    count = _counter(instruction)
    if count is None:
        return 0.0
    shapes = _operand_shapes(instruction, within)
    if is_narrow and any(BITS[shape.dtype] != 8 for shape in shapes[:2]):
        return 0.0
    return count(instruction, shapes)


def _counter(instruction: Instruction) -> Callable[[Instruction, Sequence[Shape]], float] | None:
    """What counts this kind of product; None: it is none."""
    if instruction.opcode == "custom-call":
        return _cublas if _CUBLAS in instruction.attributes else None
    return {"dot": _dot, "convolution": _convolution}.get(instruction.opcode)


def _operand_shapes(instruction: Instruction, within: Computation) -> list[Shape]:
    return [within.by_name[name].shapes[0] for name in instruction.operands]


def _dot(instruction: Instruction, operands: Sequence[Shape]) -> float:
    return _contraction(instruction, operands, instruction.attribute("lhs_contracting_dims") or "")


def _cublas(instruction: Instruction, operands: Sequence[Shape]) -> float:
    """The first of its results is the product, another its workspace."""
    dims = _CONTRACTED.search(instruction.attributes)
    assert dims is not None, f"a call of cuBLASLt without dimensions: {instruction.attributes[:200]}"
    return _contraction(instruction, operands, dims[1].replace('"', ""))


def _contraction(instruction: Instruction, operands: Sequence[Shape], dims: str) -> float:
    contracted = math.prod(operands[0].dims[int(d)] for d in dims.split(",") if d)
    return 2.0 * math.prod(instruction.shapes[0].dims) * contracted


def _convolution(instruction: Instruction, operands: Sequence[Shape]) -> float:
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    assert labels is not None, f"a convolution without dim_labels: {instruction.attributes[:200]}"
    lhs, rhs, out = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels.groups(), (*operands[:2], instruction.shapes[0]), strict=True)
    )
    groups = int(instruction.attribute("batch_group_count") or 1)
    spatial = sorted(name for name in out if name.isdigit())
    window = _window(instruction.attribute("window") or "", len(spatial))
    pairs = 1
    for i, name in enumerate(spatial):
        pairs *= _pairs(lhs[name], out[name], *(values[i] for values in window))
    return 2.0 * (lhs["b"] // groups) * out["f"] * rhs["i"] * pairs


def _window(text: str, num_spatial: int) -> tuple[list[int], ...]:
    """Sizes, strides, low padding and both dilations of a convolution's window, per spatial dimension."""
    given: Mapping[str, str] = dict(part.split("=", 1) for part in text.split())
    columns = []
    for name, default in (("size", 1), ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1)):
        values = [int(value.partition("_")[0]) for value in given[name].split("x")] if name in given else []
        columns.append(values or [default] * num_spatial)
    return tuple(columns)


@cache
def _pairs(size_in: int, size_out: int, window: int, stride: int, pad: int, dilate_in: int, dilate_window: int) -> int:
    """How many pairs of an output position and a window position hit an element of the input."""
    outputs = np.arange(size_out, dtype=np.int64) * stride - pad
    count = 0
    for offset in range(window):
        at = outputs + offset * dilate_window
        count += int(np.count_nonzero((at >= 0) & (at < (size_in - 1) * dilate_in + 1) & (at % dilate_in == 0)))
    return count
