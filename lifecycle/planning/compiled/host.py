"""Transfers between device memory and host memory: activations that a rematerialisation policy offloads.

The compiler keeps the activations in arrays of memory space 5 (the host's pinned memory) and moves slices with
asynchronous copies. The copies are represented as collectives over an axis `host`, so the schedule shows what hides
them; bytes are per device. Source: the text of programs compiled for v5p and v6e with
`save_and_offload_only_these_names`.
"""

from lifecycle.planning.compiled.collectives import Collective, Overlap, between, done_of
from lifecycle.planning.compiled.hlo import HOST, Computation, Instruction, Shape
from lifecycle.planning.compiled.names import operation
from lifecycle.planning.compiled.program import Executed, Program
from lifecycle.planning.compiled.traffic import ends_of_copy

AXES = ("host",)
TO, FROM = "to host", "from host"


def host_moves(program: Program) -> list[Collective]:
    """All copies between a device and its host, in schedule order."""
    return [move for e in program.executed if not e.is_on_other_core for move in _move(program, e)]


def _move(program: Program, e: Executed) -> list[Collective]:
    instruction, within = e.instruction, e.within
    ends = _ends(instruction, within)
    if ends is None or (ends[0].space == HOST) == (ends[1].space == HOST):
        return []
    is_async = instruction.opcode.endswith("-start")
    overlap = between(program, within, instruction, done_of(instruction, within)) if is_async else Overlap(0)
    move = Collective(
        kind=FROM if ends[0].space == HOST else TO,
        axes=AXES,
        group_size=1,
        payload_bytes=ends[1].num_bytes,
        runs=e.count,
        is_async=is_async,
        overlapped_cycles=overlap.cycles,
        overlapped_kernels=overlap.kernels,
        operation=operation(instruction),
        within=within.name,
        begins=instruction.name,
        ends=overlap.ends,
    )
    return [move]


def _ends(instruction: Instruction, within: Computation) -> tuple[Shape, Shape] | None:
    """Source and target of a copy, with the shape that is moved; `None` for any other instruction."""
    if instruction.opcode.endswith("-start"):
        return ends_of_copy(instruction)
    if instruction.opcode not in ("copy", "slice", "dynamic-slice", "dynamic-update-slice"):
        return None
    operands, result = [within.by_name[name].shapes[0] for name in instruction.operands], instruction.shapes[0]
    if instruction.opcode == "dynamic-update-slice":
        return operands[1], Shape(result.dtype, operands[1].dims, result.space)
    return Shape(result.dtype, result.dims, operands[0].space), result
