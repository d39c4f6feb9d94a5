"""Copies between HBM and a core's own memory (VMEM) that run beside the core's work.

The compiler starts them early enough by its own estimate of the work in between. It knows nothing of kernels: one that
reads at the memory's rate leaves nothing of it to others, so what is copied meanwhile arrives that much later. Products
that read their operands from HBM while a copy runs share the rate too; that is not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lifecycle.planning.compiled.collectives import done_of
from lifecycle.planning.compiled.hlo import HBM, VMEM
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.traffic import ends_of_copy


@dataclass(frozen=True)
class Prefetch:
    """One copy; bytes are per run."""

    num_bytes: int
    within: str  # the computation whose schedule contains it
    begins: str  # the instruction there that starts it
    ends: str  # the instruction there that waits for it


def prefetches(program: Program) -> Iterator[Prefetch]:
    """All copies between HBM and VMEM that the main core does not wait for at once, in schedule order."""
    for e in program.executed:
        if e.is_on_other_core or not e.instruction.opcode.endswith("-start"):
            continue
        ends = ends_of_copy(e.instruction)
        if ends is not None and {ends[0].space, ends[1].space} == {HBM, VMEM}:
            done = done_of(e.instruction, e.within)
            yield Prefetch(ends[1].num_bytes, e.within.name, e.instruction.name, done.name)
