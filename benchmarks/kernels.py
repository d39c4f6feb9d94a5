"""`docs/kernels.md`: what our TPU kernels must do at the full-size steps' shapes, and how near their schedules come.

    uv run python benchmarks/kernels.py docs/kernels.md

The compiler gives no cycles for a Pallas kernel. Its floor is the longer of its products at the matrix units' peak and
its operands and results at the HBM rate; FLOPs and bytes are those of a plan (`planning/compiled/kernels.py`). What the
kernel takes is counted from the instruction bundles that the compiler schedules for it, one a cycle: those of a tile or
of an element, times how many there are. A bundle count has no stalls (waiting for the HBM or a full matrix unit), so it
is a lower bound, too; where the matrix units need longer for a tile than its bundles, their time counts, and so does
the memory's where it is longer. Nothing was timed. To count again, compile a kernel alone with
`LIBTPU_INIT_ARGS="--xla_jf_dump_to=FOLDER --xla_jf_dump_llo_text=true"` and read the loop bodies of
`*-final_bundles.txt`; `--xla_jf_dump_static_llo_profile_to=FOLDER` adds up those of loops whose length it knows, which
an attention kernel's is not.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lifecycle.kernels import flash_blocks as fb
from lifecycle.kernels import quantised_product as qp
from lifecycle.planning.chips import CHIPS, Chip
from lifecycle.planning.compiled.hlo import Shape
from lifecycle.planning.compiled.kernels import kernel_work
from lifecycle.planning.compiled.program import Kernel

COLUMNS = (
    "kernel", "shape", "chip", "GFLOP", "MB", "floor, k cycles", "bound by", "on these units, k cycles",
    "bundles, k cycles", "ratio to the floor",
)  # fmt: skip
KINDS = {"v5p": "TPU v5", "v6e": "TPU v6 lite"}
CORES = {"v5p": 2, "v6e": 1}  # that share a device's kernel
SIDE = {"v5p": 128, "v6e": 256}  # of a matrix unit: a product narrower or shallower than it leaves the rest idle
HEADS, KEY_HEADS, HEAD_DIM, LENGTH = 32, 8, 128, 8192  # Llama 3.1 8B
TILE, PRODUCTS = 512, {"flash_fwd": 2, "flash_bwd": 5}
# Bundles of a tile of 512 x 512 without a mask (libtpu 0.0.50.1), and about those of a step beside its tiles.
BUNDLES = {
    ("flash_fwd", "v5p"): 1068,
    ("flash_bwd", "v5p"): 2393,
    ("flash_fwd", "v6e"): 870,
    ("flash_bwd", "v6e"): 1469,
}
STEP_BUNDLES = 400
# Bundles of a whole call by its elements, both cores of a v5p at once.
PER_ELEMENT = {
    ("rotate", "v5p"): 73_664 / (2 * 8192 * 4096),
    ("rotate", "v6e"): 95_001 / (8192 * 4096),
    ("gated_rows", "v5p"): 628_480 / (20480 * 14336),
    ("quantised_gates", "v6e"): 1180 / (128 * 1024),
}
# Bundles by an element that is rounded, of its values for an output, for the gradient of the input, as gated rows, for
# the gradient of the weight, and for its transposed one; those of an element that is transposed.
ROUNDED = {
    "forward": 220 / (32 * 4096),
    "backward": 820 / (32 * 14336),
    "gated": 1277 / (32 * 14336),
    "weight": (165 + 198) / (128 * 1024),
    "transposed weight": (165 + 354) / (128 * 1024),
}
TURNED = 69 / (128 * 512)
BODY_BUNDLES = 170  # of a loop body beside the matrix units' time for its products
ROWS, D_MODEL, D_FF = 8192, 4096, 14336  # of the 8B's step on a v6e


@dataclass(frozen=True)
class Roofline:
    """One kernel's call at one shape, on one device."""

    name: str
    shape: str
    chip: Chip
    flops: float
    hbm_bytes: float
    units_cycles: float  # of the products, at the share of each matrix unit that they fill
    bundles: float  # cycles by the schedule
    is_narrow: bool = False  # its products are of 8-bit values

    @property
    def product_cycles(self) -> float:
        """Of the products at the peak."""
        assert self.chip.flops_per_cycle is not None, "only TPUs are listed"
        return self.flops / self.chip.flops_per_cycle / (_narrow_rate(self.chip) if self.is_narrow else 1)

    @property
    def memory_cycles(self) -> float:
        """Of the operands and results at the HBM rate."""
        assert self.chip.clock_hz is not None, "only TPUs are listed"
        return self.hbm_bytes / self.chip.hbm_bytes_per_s * self.chip.clock_hz

    @property
    def floor(self) -> float:
        """The longer of the two."""
        return max(self.product_cycles, self.memory_cycles)

    def cells(self) -> tuple[str, ...]:
        """The line of the table."""
        bound = "products" if self.product_cycles >= self.memory_cycles else "memory"
        units = f"{self.units_cycles / 1e3:,.0f}" if self.flops else ""
        counted = f"{self.bundles / 1e3:,.0f}", f"{max(self.bundles, self.floor) / self.floor:.2f}"
        sizes = f"{self.flops / 1e9:,.0f}", f"{self.hbm_bytes / 1e6:,.0f}"
        return (self.name, self.shape, self.chip.name, *sizes, f"{self.floor / 1e3:,.0f}", bound, units, *counted)


def _narrow_rate(chip: Chip) -> float:
    """Of products of 8-bit values, in units of bfloat16's."""
    assert chip.int8_ops is not None
    return chip.int8_ops / chip.bf16_flops


def attention(name: str, chip: str, rows: int) -> Roofline:
    """The flash kernels over causal rows without segments' borders."""
    q, k = (Shape("bf16", (rows, LENGTH, heads * HEAD_DIM)) for heads in (HEADS, KEY_HEADS))
    lse = Shape("f32", (rows, HEADS, 1, LENGTH))
    operands, results = ((q, k, k), (q, lse)) if name == "flash_fwd" else ((q, k, k, q, lse, q), (q, k, k, lse))
    (work,) = kernel_work([Kernel(name, operands, results, 1)], 0.5, is_exchanged=False)
    assert work.flops is not None
    device = CHIPS[chip]
    assert device.flops_per_cycle is not None
    filled = min(1.0, HEAD_DIM / SIDE[chip])
    tiles, steps = _visits(name, chip, rows)
    a_tile = PRODUCTS[name] * 2 * TILE * TILE * HEAD_DIM / (device.flops_per_cycle / CORES[chip]) / filled
    cycles = (tiles * max(BUNDLES[name, chip], a_tile) + steps * STEP_BUNDLES) / CORES[chip]
    shape = f"{rows} x {LENGTH}, {HEADS} heads, {KEY_HEADS} of keys, {HEAD_DIM}"
    units = work.flops / device.flops_per_cycle / filled
    return Roofline(name, shape, device, work.flops, work.hbm_bytes, units, cycles)


def _visits(name: str, chip: str, rows: int) -> tuple[int, int]:
    """How many tiles a call computes, and in how many steps of its grid."""
    blocks = fb.blocks_of(KINDS[chip], HEAD_DIM)
    plan = fb.Plan(HEADS, KEY_HEADS, HEAD_DIM, HEAD_DIM, LENGTH, 1, None, 1.0, None, blocks, False)
    side = LENGTH // TILE
    tiles = rows * HEADS * side * (side + 1) // 2  # on the diagonal, half of a tile is wasted
    if name == "flash_fwd":
        return tiles, rows * HEADS * fb.forward_steps(plan).shape[-1]
    return tiles, rows * KEY_HEADS * fb.backward_steps(plan, (0, plan.num_q)).shape[-1]


def elementwise(name: str, chip: str, shape: str, inputs: list[Shape], outputs: list[Shape]) -> Roofline:
    """A kernel without products."""
    (work,) = kernel_work([Kernel(name, tuple(inputs), tuple(outputs), 1)], 0.5, is_exchanged=False)
    cycles = PER_ELEMENT[name, chip] * math.prod(inputs[0].dims)
    return Roofline(name, shape, CHIPS[chip], 0.0, work.hbm_bytes, 0.0, cycles)


def quantised(way: str, depth: int, columns: int) -> Roofline:
    """The products of 8,192 rows and a `[depth, columns]` weight of 8-bit values on a v6e, one of `ROUNDED`."""
    chip, is_rows = CHIPS["v6e"], way in ("forward", "backward", "gated")
    depth, columns = (columns, depth) if way == "backward" else (depth, columns)
    x, out, most = Shape("bf16", (ROWS, depth)), Shape("bf16", (ROWS, columns)), Shape("f32", (ROWS, 128))
    if is_rows:
        operands = [x] * (2 if way == "gated" else 1) + [Shape("s8", (depth, columns))]
        name, results = "quantised_rows", (out, most)
        blocks = qp.rows_blocks(ROWS, depth, columns, 2 if way == "gated" else 1)
        assert blocks is not None
        height, across, rounded = blocks.rows, columns // blocks.columns, ROWS * depth
        reads = ROWS // blocks.rows * depth * columns  # of the weight
        bodies = ROWS // height * across * _bodies(height, depth, blocks.columns)
    else:
        name, is_turned = "quantised_columns", way == "transposed weight"
        operands, results = [Shape("s8", x.dims), most, out], (Shape("bf16", (depth, columns)),)
        blocks = qp.columns_blocks(ROWS, depth, columns, is_turned)
        assert blocks is not None
        sides = blocks[::-1] if is_turned else blocks
        rounded, reads = ROWS * columns, ROWS * depth * (columns // blocks.columns if is_turned else 1)
        bodies = columns // blocks.columns * (depth // blocks.rows) * _bodies(sides[0], ROWS, sides[1])
    (work,) = kernel_work([Kernel(name, tuple(operands), results, 1)], 0.5, is_exchanged=False)
    assert work.flops is not None and chip.clock_hz is not None
    products = work.peak_s(chip) * chip.clock_hz
    moved = work.hbm_bytes + reads - (depth * columns if is_rows else ROWS * depth)
    memory = moved / chip.hbm_bytes_per_s * chip.clock_hz
    cycles = max(products + bodies * BODY_BUNDLES, memory) + rounded * ROUNDED[way]
    cycles += ROWS * depth * TURNED if way == "weight" else 0
    shape = f"{ROWS} x {depth} by {columns}, {way}"
    return Roofline(name, shape, chip, work.flops, work.hbm_bytes, products, cycles, is_narrow=True)


def _bodies(rows: int, depth: int, columns: int) -> int:
    """Loop bodies of a block."""
    return rows // qp.body_rows(rows, depth, columns)


def rooflines() -> Iterator[Roofline]:
    """All lines: the 8B's attention and rotations on both chips, Mixtral's gated rows."""
    for chip, rows in (("v5p", 2), ("v6e", 1)):
        yield attention("flash_fwd", chip, rows)
        yield attention("flash_bwd", chip, rows)
        for heads in (HEADS, KEY_HEADS):
            x = Shape("bf16", (rows, LENGTH, heads * HEAD_DIM))
            angles = Shape("f32", (2, rows, LENGTH, HEAD_DIM))
            yield elementwise("rotate", chip, f"{rows} x {LENGTH}, {heads} heads of {HEAD_DIM}", [x, angles], [x])
    half, weights = Shape("bf16", (20480, 14336)), Shape("f32", (20480, 1))
    yield elementwise("gated_rows", "v5p", "20480 x 14336", [half] * 3 + [weights], [half] * 3 + [weights])
    for depth, columns in ((D_MODEL, D_FF), (D_MODEL, D_MODEL), (D_MODEL, D_MODEL // 4)):
        for way in ("forward", "backward", "weight"):
            yield quantised(way, depth, columns)
    for way in ("gated", "backward", "transposed weight"):
        yield quantised(way, D_FF, D_MODEL)
    yield quantised("transposed weight", D_MODEL, D_MODEL)
    half, hidden = Shape("bf16", (ROWS, D_FF)), Shape("s8", (ROWS, D_FF))
    shape = f"{ROWS} x {D_FF}"
    yield elementwise("quantised_gates", "v6e", shape, [half] * 3 + [Shape("f32", (ROWS, 1))], [half, half, hidden])


def page() -> str:
    """The page."""
    head = (
        "# Kernels: floors and schedules\n\n"
        "Made by `uv run python benchmarks/kernels.py docs/kernels.md`; do not edit. One call on one\n"
        "device (a v5p's two cores share it), at the shapes of the 8B's and Mixtral's steps. The floor is the longer\n"
        "of the products at the peak and of operands and results at the HBM rate; causal attention counts half. `On\n"
        "these units`: a head of 128 dimensions fills half of a v6e's 256 x 256 matrix unit, whatever the kernel.\n\n"
        "`Bundles`: the cycles of the instructions that the compiler schedules, without stalls; not timed, and no\n"
        "estimate of the compiler's, which has none for kernels in a step. The ratio is that of bundles or floor,\n"
        "whichever is longer, to the floor. Attention on a v5p is near what its matrix units can do. On a v6e, whose\n"
        "units are four times as fast as a v5p core's, it is bound by its other instructions: 27 and 40 % of the\n"
        "peak, where a plan assumes 60 % for every kernel.\n\n"
        "`quantised_...` are the products of int8 training, which round their operands themselves; their peak is that\n"
        "of 8-bit values. A weight is read once for each block of rows, which the floor's bytes leave out.\n\n"
    )
    lines = ["| " + " | ".join(roofline.cells()) + " |" for roofline in rooflines()]
    return head + "\n".join(("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *lines)) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/kernels.md").write_text(page(), encoding="utf-8")
