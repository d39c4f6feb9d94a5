"""Work of kernels (Pallas' on TPUs, cuDNN's attention on GPUs), from their names and operands: the compiler's text has
no estimate for them.

Attention kernels are recognised by name. Ours (`flash`) work on arrays whose last dimension merges the heads: `fwd` has
two products (q k', p v), `bwd` five (q k', dO v', P' dO, dS' q, dS k). JAX's: `fwd` has the same two, `dq` three (q k'
again, dO v', dS k), `dkv` four (q k', dO v', P' dO, dS' q). cuDNN's `fmha...` has two, `fmha...Backward` five, over the
full square unless it knows that the mask is causal. `paged` reads all pages that its table names, of one layer of its
stores: a plan is for full contexts. Rotations have none. Grouped products are `gmm` (each row by one matrix) and `tgmm`
(its gradient with respect to the matrices), of 8-bit values both XLA's `ragged-dot-none`;
`gated_rows`, between them in the backward pass, is elementwise and moves its full buffers. Grouped products multiply
filled rows only; where rows are exchanged between devices, those of an even load: the buffer's rows divided by
`dispatch.ROOM`. `quantised_rows` and `quantised_columns` are products of 8-bit values, which have a peak of their own;
`quantised_gates` is elementwise.

A kernel takes the time of its products at a share of the peak, or that of moving its operands and results at the HBM
rate, whichever is longer.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.model.dispatch import ROOM
from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.hlo import HBM, Shape
from lifecycle.planning.compiled.program import Kernel

ATTENTION = re.compile(r"splash|flash|attention|mha|mqa")
ELEMENTWISE = {"rotate", "gated_rows", "quantised_gates", "ragged-dot-metadata"}  # memory-bound
QUANTISED = re.compile(r"quantised_(rows|columns)")  # they round their operands: the result is as wide as a gradient
PAGED, STORE_DIMS = "paged", 6  # a store is [layers, pages, slices, heads, positions, dimensions]; scales lack the last
GROUPED = re.compile(r"gmm|ragged-dot-none")
FLOATS = {"bf16", "f32", "f16"}
FACTORS = FLOATS | {"s8", "f8e4m3fn", "f8e5m2"}
# The share of the matrix units' peak that a kernel is assumed to reach; a plan shows what other shares would mean. On
# TPUs nothing was measured, and we know of no published figure for these kernels. On an H100 cuDNN's forward kernel
# reaches 0.60 to 0.62 for heads of 128 and rows of 2,048 to 16,384 (Shah et al. 2024, "FlashAttention-3", figure 5).
ASSUMED_SHARE = 0.6


@dataclass(frozen=True)
class KernelWork:
    """The calls of a kernel in one run of the program."""

    name: str
    calls: int
    flops: float | None  # per call; None: unknown
    hbm_bytes: float  # per call, of operands and results in HBM
    is_narrow: bool = False  # whether its products are of 8-bit values

    @property
    def total_flops(self) -> float:
        """FLOPs of all calls; 0 if unknown."""
        return self.calls * (self.flops or 0.0)

    def seconds(self, chip: Chip, share: float) -> float:
        """Seconds of one call, with products at this share of the peak."""
        return max(self.peak_s(chip) / share, self.hbm_bytes / chip.hbm_bytes_per_s)

    def peak_s(self, chip: Chip) -> float:
        """Seconds of one call's products at the peak."""
        return (self.flops or 0.0) / ((chip.int8_ops if self.is_narrow else None) or chip.bf16_flops)


def kernel_work(kernels: Sequence[Kernel], attention_share: float, is_exchanged: bool) -> list[KernelWork]:
    """The work of each kernel.

    `attention_share` is the share of the attention matrix that queries see, 0.5 for long causal rows. With
    `is_exchanged`, rows move between the experts' devices, and grouped products have an even load.
    """
    works = []
    for k in kernels:
        flops = _flops(k, attention_share if k.is_causal else 1.0)
        if flops is not None and is_exchanged and GROUPED.search(k.name):
            flops /= ROOM
        moved = _moved(k)
        works.append(KernelWork(k.name, k.calls, flops, float(moved), QUANTISED.fullmatch(k.name) is not None))
    return works


def _moved(kernel: Kernel) -> float:
    """Bytes of operands and results in HBM; of stores of pages those that are read."""
    arrays = (*kernel.operands, *kernel.results)
    if kernel.name != PAGED:
        return sum(shape.num_bytes for shape in arrays if shape.space == HBM)
    rows, positions = _paged_rows(kernel)
    store = next(shape for shape in arrays if len(shape.dims) == STORE_DIMS)
    all_positions = store.dims[0] * store.dims[1] * store.dims[4]
    stores = [shape for shape in arrays if shape.dims[:2] == store.dims[:2]]  # scales too
    others = [shape for shape in arrays if shape.dims[:2] != store.dims[:2] and shape.space == HBM]
    pages = sum(shape.num_bytes for shape in stores) / all_positions * rows * positions
    return pages + sum(shape.num_bytes for shape in others)


def _paged_rows(kernel: Kernel) -> tuple[int, int]:
    """Rows, and positions of each, whose pages a call reads; its last integers are the table and two numbers a row."""
    table, start, _ = [shape for shape in kernel.operands if shape.dtype == "s32"][-3:]
    page = next(shape.dims[4] for shape in kernel.operands if len(shape.dims) == STORE_DIMS)
    return start.dims[0], table.dims[0] // start.dims[0] * page


def _paged(kernel: Kernel) -> float:
    """FLOPs of `[B, K, rows, Dk]` queries, of every row over all of its positions."""
    rows, positions = _paged_rows(kernel)
    queries, result = (next(s for s in of if len(s.dims) == 4) for of in (kernel.operands, kernel.results))
    return 2.0 * rows * math.prod(queries.dims[1:3]) * positions * (queries.dims[3] + result.dims[3])


def _flops(kernel: Kernel, attention_share: float) -> float | None:
    if kernel.name == PAGED:
        return _paged(kernel)
    floats = [shape for shape in kernel.operands if shape.dtype in FLOATS]
    if GROUPED.search(kernel.name):
        return _grouped(kernel)
    if QUANTISED.fullmatch(kernel.name):
        return _quantised(kernel)
    if kernel.name in ELEMENTWISE:
        return 0.0
    if ATTENTION.search(kernel.name) is None:
        return None
    arrays = [shape for shape in floats if len(shape.dims) >= 3]
    if len(arrays) < 3:
        return None
    q, k, v = arrays[:3]
    if "flash" in kernel.name:
        return _flash(kernel, q, k, v, attention_share)
    if kernel.name.startswith("fmha"):
        return _cudnn(kernel, q, k, v, attention_share)
    pairs = math.prod(q.dims[:-1]) * k.dims[-2] * attention_share
    score, value = 2.0 * pairs * q.dims[-1], 2.0 * pairs * v.dims[-1]
    if "dkv" in kernel.name:
        return 2 * score + 2 * value
    if "dq" in kernel.name:
        return 2 * score + value
    return score + value


def _flash(kernel: Kernel, q: Shape, k: Shape, v: Shape, attention_share: float) -> float:
    """FLOPs for `[B, T, H * Dk]` queries, `[B, S, K * Dk]` keys and `[B, S, K * Dv]` values.

    How many query heads share a key head follows from the widths.
    """
    pairs = math.prod(q.dims[:-1]) * k.dims[-2] * attention_share
    score, value = 2.0 * pairs * q.dims[-1], 2.0 * pairs * v.dims[-1] * q.dims[-1] / k.dims[-1]
    return 3 * score + 2 * value if "bwd" in kernel.name else score + value


def _cudnn(kernel: Kernel, q: Shape, k: Shape, v: Shape, attention_share: float) -> float:
    """FLOPs for `[B, T, H, Dk]` queries, `[B, S, K, Dk]` keys and `[B, S, K, Dv]` values."""
    pairs = math.prod(q.dims[:-1]) * k.dims[1] * attention_share
    score, value = 2.0 * pairs * q.dims[-1], 2.0 * pairs * v.dims[-1]
    return 3 * score + 2 * value if kernel.name.endswith("Backward") else score + value


def _grouped(kernel: Kernel) -> float | None:
    """FLOPs of m rows of width k by matrices `[g, k, n]`, or, for a result `[g, k, n]`, of k by n products summed over
    the rows."""
    result = kernel.results[0].dims
    rows = next((shape.dims for shape in kernel.operands if shape.dtype in FACTORS and len(shape.dims) == 2), None)
    if rows is None:
        return None
    if len(result) == 3:
        return 2.0 * math.prod(rows) * (result[2] if result[1] in rows else result[1])
    return 2.0 * math.prod(rows) * result[-1]


def _quantised(kernel: Kernel) -> float:
    """FLOPs of rows `[m, k]`, the first operand, by a matrix to `[m, n]`, or of `[m, k]` and `[m, n]` summed over the
    rows."""
    rows, depth = kernel.operands[0].dims
    return 2.0 * math.prod(kernel.results[0].dims) * (depth if kernel.name == "quantised_rows" else rows)
