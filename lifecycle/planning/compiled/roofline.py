"""Cycles of a GPU program's instructions, for which no compiler gives an estimate: a roofline for each of them.

An instruction takes the time of its products at a share of the peak, or that of its memory traffic (`traffic.py`) at
the memory's stated rate, whichever is longer (Williams et al. 2009, "Roofline"). Loops and calls take what is in them;
collectives, and copies that run beside the computation, take none of the main stream's time. What must hold: with every
share at 1 this is a lower bound, but for traffic that the level 2 cache spares, so no cycles here are better than
the stated peaks allow. Launches, and products too small to fill the cores, are not seen.
"""

from collections.abc import Callable

from lifecycle.planning.chips import Chip
from lifecycle.planning.compiled.collectives import KINDS
from lifecycle.planning.compiled.hlo import Computation, Instruction
from lifecycle.planning.compiled.names import is_kernel
from lifecycle.planning.compiled.program import CostModel, Program
from lifecycle.planning.compiled.traffic import traffic

# The shares of the peak that the best product of any shape reached on an H100 (A100: 0.87, B200: 0.78), in bfloat16 and
# in float8: stas00/ml-engineering compute/accelerator, "Maximum Achievable Matmul FLOPS Comparison Table"
PRODUCT_SHARE, NARROW_SHARE = 0.80, 0.71
SLOWEST = 4 / 3  # the slow end of the range: three quarters of these shares
_ELSEWHERE = ("-start", "-done", "-update")  # on other streams


def roofline(chip: Chip) -> CostModel:
    """The cost model of programs for a GPU."""
    source = (
        f"a roofline's: products at {PRODUCT_SHARE:.0%} of the peak ({NARROW_SHARE:.0%} of 8-bit values), or "
        "traffic at the memory's rate"
    )
    return CostModel(_cycles_on(chip), source, SLOWEST)


def _cycles_on(chip: Chip) -> Callable[[Program, Instruction, Computation], int]:
    wide, narrow = PRODUCT_SHARE * chip.bf16_flops, NARROW_SHARE * (chip.int8_ops or chip.bf16_flops)

    def cycles(program: Program, instruction: Instruction, within: Computation) -> int:
        opcode = instruction.opcode
        if opcode in KINDS or opcode.endswith(_ELSEWHERE) or is_kernel(instruction):
            return 0
        of_8_bits = program.flops_in(instruction, within, is_narrow=True)
        products_s = (program.flops_in(instruction, within) - of_8_bits) / wide + of_8_bits / narrow
        memory_s = traffic(program.module, instruction, within) / chip.hbm_bytes_per_s
        return round(max(products_s, memory_s) * chip.clock_hz)

    return cycles
