"""Simulates one run of a program: its schedule, with times for cycles, kernels, collectives and copies.

The main core follows the schedule. A collective starts where the schedule starts it, or when the previous one on the
same axes is done, and the core waits where the schedule waits for it; the link to the host is one more such axis, with
its waits counted separately. A copy from or to HBM starts when those before it are done, and waits while a kernel
reads. A loop takes the time of one run of its body times its trip count, since a body ends everything that it starts.
Conditionals take their costliest branch.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.hlo import Computation, Instruction
from lifecycle.planning.compiled.names import kernel_name
from lifecycle.planning.compiled.prefetch import Prefetch
from lifecycle.planning.compiled.program import Program


@dataclass(frozen=True)
class Times:
    """Seconds of a run, in parts."""

    compute_s: float = 0.0  # the main core computes
    kernel_s: float = 0.0  # the main core is in kernels
    exposed_s: float = 0.0  # the main core waits for the network
    network_s: float = 0.0  # the network is busy
    host_exposed_s: float = 0.0  # the main core waits for the host
    host_s: float = 0.0  # the link to the host is busy
    memory_exposed_s: float = 0.0  # the main core waits for copies from or to HBM

    @property
    def total_s(self) -> float:
        """Seconds from start to end."""
        return self.compute_s + self.kernel_s + self.exposed_s + self.host_exposed_s + self.memory_exposed_s

    def times(self, count: int) -> "Times":
        """The times of `count` runs, one after the other."""
        return Times(*(count * value for value in vars(self).values()))

    def plus(self, other: "Times") -> "Times":
        """The times of both, one after the other."""
        return Times(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class _Arrival:
    """When data arrives, and whether it crossed the link to the host."""

    at_s: float
    is_from_host: bool


@dataclass
class _Clock:
    """The state of one computation's run so far."""

    spent: Times = Times()
    free_at: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))  # by mesh axes
    arrives: dict[str, list[_Arrival]] = field(default_factory=lambda: defaultdict(list))  # by the waiting instruction
    memory_free_at: float = 0.0
    copied_at: dict[str, float] = field(default_factory=dict)  # by the waiting instruction

    def wait(self, arrival: _Arrival) -> None:
        """Waits for the data unless it has arrived."""
        waited = max(0.0, arrival.at_s - self.spent.total_s)
        self.spent = self.spent.plus(Times(host_exposed_s=waited) if arrival.is_from_host else Times(exposed_s=waited))

    def copy(self, ends: str, seconds: float) -> None:
        """Starts a copy when those before it are done."""
        self.memory_free_at = max(self.memory_free_at, self.spent.total_s) + seconds
        self.copied_at[ends] = self.memory_free_at

    def wait_for_copy(self, ends: str) -> None:
        """Waits for the copy that an instruction ends, if it does."""
        waited = self.copied_at.pop(ends, 0.0) - self.spent.total_s
        if waited > 0:
            self.spent = self.spent.plus(Times(memory_exposed_s=waited))

    def read(self, seconds: float) -> None:
        """Lets the copies that are not done wait while a kernel reads."""
        now = self.spent.total_s
        if self.memory_free_at > now:
            self.copied_at = {end: at + seconds if at > now else at for end, at in self.copied_at.items()}
            self.memory_free_at += seconds


@dataclass(frozen=True)
class Memory:
    """What copies and kernels want of the HBM at once: its rate, the copies, and the bytes that a kernel moves, by
    name."""

    bytes_per_s: float
    copies: Sequence[Prefetch]
    moved: Mapping[str, float]


NO_COPIES = Memory(math.inf, (), {})


class Timeline:
    """Simulates a program. `kernel_s` maps a kernel's name to its seconds, `network_s` a collective to its seconds."""

    def __init__(
        self,
        program: Program,
        collectives: Sequence[Collective],
        clock_hz: float,
        kernel_s: Mapping[str, float],
        network_s: Callable[[Collective], float],
        memory: Memory = NO_COPIES,
    ) -> None:
        self._program, self._clock_hz = program, clock_hz
        self._kernel_s, self._network_s, self._memory = kernel_s, network_s, memory
        self._copies = {(copy.within, copy.begins): copy for copy in memory.copies}
        self._begins: dict[tuple[str, str], list[Collective]] = defaultdict(list)
        for collective in collectives:
            self._begins[collective.within, collective.begins].append(collective)
        self._done: dict[str, Times] = {}

    def run(self) -> Times:
        """The times of one run of the program."""
        return self._computation(self._program.module.entry.name)

    def _computation(self, name: str) -> Times:
        if name not in self._done:
            computation, clock = self._program.module.computations[name], _Clock()
            for instruction in computation.instructions:
                self._instruction(instruction, computation, clock)
            self._done[name] = clock.spent
        return self._done[name]

    def _instruction(self, instruction: Instruction, within: Computation, clock: _Clock) -> None:
        for arrival in clock.arrives.pop(instruction.name, ()):
            clock.wait(arrival)
        clock.wait_for_copy(instruction.name)
        if (copy := self._copies.get((within.name, instruction.name))) is not None:
            clock.copy(copy.ends, copy.num_bytes / self._memory.bytes_per_s)
        kernel = self._program.kernel_in(instruction, within)
        if kernel is not None:
            clock.read(self._memory.moved.get(kernel_name(kernel[0]), 0.0) / self._memory.bytes_per_s)
        begun = self._begins.get((within.name, instruction.name), ())
        arrivals = [self._start(collective, clock) for collective in begun]
        for collective, arrives in zip(begun, arrivals, strict=True):
            if collective.ends is not None:
                clock.arrives[collective.ends].append(arrives)
            elif not collective.is_async:
                clock.wait(arrives)
        own = self._own(instruction, within) if kernel is None else self._of_kernel(kernel[0])
        clock.spent = clock.spent.plus(own)
        for collective, arrives in zip(begun, arrivals, strict=True):
            if collective.is_async and collective.ends is None:  # in a fusion with products
                clock.wait(arrives)

    def _start(self, collective: Collective, clock: _Clock) -> _Arrival:
        """Starts a collective; returns when its data arrives."""
        takes = self._network_s(collective)
        arrives = max(clock.spent.total_s, clock.free_at[collective.axes]) + takes
        clock.free_at[collective.axes] = arrives
        clock.spent = clock.spent.plus(Times(host_s=takes) if collective.is_to_host else Times(network_s=takes))
        return _Arrival(arrives, collective.is_to_host)

    def _of_kernel(self, call: Instruction) -> Times:
        return Times(kernel_s=self._kernel_s.get(kernel_name(call), 0.0))

    def _own(self, instruction: Instruction, within: Computation) -> Times:
        """The main core's time in an instruction without kernels, including the loops and calls in it."""
        if instruction.opcode == "while":
            runs = self._program.trips(instruction, within)
            return self._computation(instruction.called["body"]).times(runs)
        if instruction.opcode == "call":
            return self._computation(instruction.called["to_apply"])
        if instruction.opcode == "conditional":
            return self._computation(self._program.costliest(instruction))
        return Times(compute_s=self._program.own_cycles(instruction, within) / self._clock_hz)
