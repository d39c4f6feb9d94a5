"""The collectives of a compiled module: bytes, mesh axes, and whether computation overlaps them.

The payload per device is an all-gather's output and every other collective's input; one in a loop counts once per trip.
(An all-gather's payload includes the device's own shard, as is usual when two programs are compared. `wire_bytes`, the
bytes that a device has to send over a ring, excludes it: 2 (n - 1) / n of the payload for an all-reduce, all of it for
a permute or broadcast, (n - 1) / n for the others.)

A collective appears in the text in six forms: alone (the core waits), as `-start` and `-done`, as `send` and `recv` to
other slices (the exchange within a slice appears as separate collectives), inside a computation that `call-start` or
`async-start` hands to another core, in a fusion with products, or as a chain of fusions: one starts it, some advance it
alongside their products, one ends it; all share its `chain_id`. In all but the first, the compiler has scheduled work
to overlap it: the cycles between start and done. A fusion may also contain only a collective (an all-reduce with its
slice): then nothing overlaps it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lifecycle.planning.compiled.device_groups import MeshShape, axes_of
from lifecycle.planning.compiled.hlo import Computation, Instruction
from lifecycle.planning.compiled.names import kernel_name, operation
from lifecycle.planning.compiled.program import Executed, Program

KINDS = (
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_STARTS = {f"{kind}-start": kind for kind in KINDS}
_CHAIN = re.compile(r'chain_id="(\d+)"')
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEETING = re.compile(r'_xla_host_transfer_rendezvous="[^"]*"')


@dataclass(frozen=True)
class Collective:
    """One collective and the work scheduled while it is in flight; bytes and cycles are per run."""

    kind: str
    axes: tuple[str, ...]
    group_size: int
    payload_bytes: int
    runs: int
    is_async: bool
    overlapped_cycles: int  # the main core's, between start and done or in the fusion that contains the collective
    overlapped_kernels: tuple[str, ...]  # Pallas calls between start and done, which have no cycle estimate
    operation: str
    within: str  # the computation whose schedule contains it
    begins: str  # the instruction there that starts it
    ends: str | None  # the instruction there that waits for it; None: the same one

    @property
    def is_to_host(self) -> bool:
        """Whether it crosses the link between the device and its host instead of a network (`host.py`)."""
        return self.axes == ("host",)

    @property
    def is_overlapped(self) -> bool:
        """Whether the main core has work while the collective is in flight."""
        return self.is_async and (self.overlapped_cycles > 0 or bool(self.overlapped_kernels))

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in one run."""
        return self.wire_bytes_among(self.group_size)

    def wire_bytes_among(self, num_devices: int) -> float:
        """Bytes that a device sends in one run to those of `num_devices` that exchange the whole payload."""
        if self.is_to_host or self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.payload_bytes)
        share = (num_devices - 1) / num_devices
        return self.payload_bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclass(frozen=True)
class Overlap:
    """The main core's work between a collective's start and done."""

    cycles: int
    begins: str | None = None  # the instruction that starts the collective; None: the one that is or contains it
    ends: str | None = None  # the instruction that waits for it; None: the same one
    kernels: tuple[str, ...] = ()


def collectives(program: Program, mesh: MeshShape) -> list[Collective]:
    """All collectives in schedule order, except those over groups of one device, which send nothing."""
    all_collectives = []
    for e in program.executed:
        if not e.is_on_other_core:  # another core's work is counted where it is started
            all_collectives += [
                _collective(instruction, within, overlap, e, mesh)
                for instruction, within, overlap in _at(program, e.instruction, e.within)
            ]
    return [c for c in all_collectives if c.group_size > 1]


def _at(
    program: Program, instruction: Instruction, within: Computation
) -> Iterator[tuple[Instruction, Computation, Overlap | None]]:
    """Collectives that an instruction is or contains, each with its computation and overlap (`None`: synchronous)."""
    if instruction.opcode in KINDS:
        yield instruction, within, None
    elif instruction.opcode in _STARTS:
        yield instruction, within, between(program, within, instruction, done_of(instruction, within))
    elif instruction.opcode in ("call-start", "async-start"):
        overlap = between(program, within, _begun(instruction, within), done_of(instruction, within))
        for inner, inside in _inner(program, instruction):
            yield inner, inside, overlap
    elif instruction.opcode == "send" and _BETWEEN_SLICES.search(instruction.attributes):
        done = done_of(_partner(instruction, within), within)
        yield instruction, within, between(program, within, instruction, done)
    elif instruction.opcode == "fusion":
        for inner, inside in _inner(program, instruction):
            chain = _CHAIN.search(inner.attributes)
            if chain is None:
                yield inner, inside, Overlap(instruction.cycles)
            elif _has_target(inside, "AsyncCollectiveStart"):
                done = _chain_end(program, within, chain[1])
                yield inner, inside, between(program, within, instruction, done)


def _collective(
    instruction: Instruction, within: Computation, overlap: Overlap | None, e: Executed, mesh: MeshShape
) -> Collective:
    is_async, overlap = overlap is not None, overlap or Overlap(0)
    if instruction.opcode == "send":
        kind, axes, group_size = _slice_kind(instruction), mesh.axes[:1], mesh.num_slices
    else:
        kind = _STARTS.get(instruction.opcode, instruction.opcode)
        kind = "reduce-scatter" if _is_cut_inside(instruction, within, e) else kind
        axes, group_size = axes_of(instruction, mesh)
    if kind == "all-gather":
        result = _result(instruction, within)
        payload = sum(shape.num_bytes for shape in result.shapes)
    else:
        payload = sum(s.num_bytes for name in _data(kind, instruction) for s in within.by_name[name].shapes)
    return Collective(
        kind=kind,
        axes=axes,
        group_size=group_size,
        payload_bytes=payload,
        runs=e.count,
        is_async=is_async,
        overlapped_cycles=overlap.cycles,
        overlapped_kernels=overlap.kernels,
        operation=operation(instruction),
        within=e.within.name,
        begins=overlap.begins or e.instruction.name,
        ends=overlap.ends,
    )


def _is_cut_inside(instruction: Instruction, within: Computation, e: Executed) -> bool:
    """Whether this all-reduce is a reduce-scatter as the TPU compiler writes most of them.

    That is a `kCustom` fusion of the all-reduce and the slice that a device keeps. (The compiler's notes: emitter
    `SingleInputAllReduceScatterFusion`, a ring whose shards are the devices' slices.) With the slice outside the fusion
    it stays an all-reduce: every device gets the full sum.
    """
    if instruction.opcode != "all-reduce" or e.instruction.attribute("kind") != "kCustom":
        return False
    users = within.users(instruction.name)
    return bool(users) and all(user.opcode in ("dynamic-slice", "slice") for user in users)


def _data(kind: str, instruction: Instruction) -> tuple[str, ...]:
    """The operands that are sent.

    The other operands of a ragged all-to-all are its output buffer, offsets and sizes; that of a `send` is a token.
    """
    return (
        instruction.operands[:1]
        if kind == "ragged-all-to-all" or instruction.opcode == "send"
        else instruction.operands
    )


def _result(instruction: Instruction, within: Computation) -> Instruction:
    """The instruction whose type is the type of the collective's result."""
    if instruction.opcode == "send":
        return done_of(_partner(instruction, within), within)
    return done_of(instruction, within) if instruction.opcode in _STARTS else instruction


def _slice_kind(send: Instruction) -> str:
    """The kind of collective that a `send` between slices belongs to."""
    transfer = _BETWEEN_SLICES.search(send.attributes)
    assert transfer is not None, f"{send.name} does not go to another slice"
    kind = {"ONE_TO_ONE": "collective-permute"}.get(transfer[1], transfer[1].lower().replace("_", "-"))
    assert kind in KINDS, f"{send.name}: unknown exchange between slices: {transfer[1]}"
    return kind


def _partner(send: Instruction, within: Computation) -> Instruction:
    """The `recv` that gets the other slices' data for this `send`: the one with the same rendezvous."""
    meeting = _MEETING.search(send.attributes)
    assert meeting is not None, f"{send.name} has no rendezvous: {send.attributes[:200]}"
    return next(i for i in within.instructions if i.opcode == "recv" and meeting[0] in i.attributes)


def _inner(program: Program, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
    """Collectives in the computations that an instruction calls, including those in nested fusions and calls."""
    for role, name in instruction.called.items():
        if role == "to_apply" and instruction.opcode not in ("call-start", "call"):
            continue  # the reducer, such as a sum
        computation = program.module.computations[name]
        for inner in computation.instructions:
            if inner.opcode in KINDS:
                yield inner, computation
            elif inner.opcode in ("fusion", "call"):
                yield from _inner(program, inner)


def done_of(start: Instruction, within: Computation) -> Instruction:
    """The `-done` that waits for this start, found through any `-update` in between."""
    followers = [i for i in within.users(start.name) if i.opcode.endswith(("-done", "-update"))]
    assert followers, f"{start.name} in {within.name} is started, and no instruction waits for it"
    return followers[0] if followers[0].opcode.endswith("-done") else done_of(followers[0], within)


def _begun(start: Instruction, within: Computation) -> Instruction:
    """The instruction that hands the other core the last of its data: the last `-update`, else the start itself."""
    updates = [i for i in within.users(start.name) if i.opcode.endswith("-update")]
    return _begun(updates[0], within) if updates else start


def _chain_end(program: Program, within: Computation, chain: str) -> Instruction:
    """The fusion that waits for a chain's collective."""
    for i in within.instructions:
        if i.opcode != "fusion" or not _has_target(
            program.module.computations[i.called["calls"]], "AsyncCollectiveDone"
        ):
            continue
        if any(f'chain_id="{chain}"' in inner.attributes for inner, _ in _inner(program, i)):
            return i
    raise AssertionError(f"chain {chain} in {within.name} is started, and no instruction waits for it")


def _has_target(computation: Computation, target: str) -> bool:
    return any(f'custom_call_target="{target}"' in i.attributes for i in computation.instructions)


def between(program: Program, within: Computation, start: Instruction, done: Instruction) -> Overlap:
    """The main core's cycles and kernels between two instructions."""
    names = [i.name for i in within.instructions]
    inside = within.instructions[names.index(start.name) + 1 : names.index(done.name)]
    calls = filter(None, (program.kernel_in(i, within) for i in inside))
    kernels = tuple(kernel_name(kernel) for kernel, _ in calls)
    return Overlap(sum(program.cycles_in(i, within) for i in inside), start.name, done.name, kernels)
