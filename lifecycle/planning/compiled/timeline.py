"""One run of a program in time: its schedule played through with cycles, kernels and networks.

The main core follows the schedule. A collective starts where the schedule starts it, one after the other on the same
axes, and the core waits where the schedule waits for it; the link to the host is one more such axis, with its waits
counted separately. A loop's time is that of one run of its body, multiplied: what a body starts it also ends.
Conditionals take their costliest branch.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.hlo import Computation, Instruction
from lifecycle.planning.compiled.names import is_kernel, kernel_name
from lifecycle.planning.compiled.program import Program


@dataclass(frozen=True)
class Times:
    """Seconds of the main core: computing, in kernels, waiting for the network and for the host; and how long the
    network and the link to the host were busy."""

    compute_s: float = 0.0
    kernel_s: float = 0.0
    exposed_s: float = 0.0
    network_s: float = 0.0
    host_exposed_s: float = 0.0
    host_s: float = 0.0

    @property
    def total_s(self) -> float:
        """From the program's start to its end."""
        return self.compute_s + self.kernel_s + self.exposed_s + self.host_exposed_s

    def times(self, count: int) -> "Times":
        """So many runs."""
        return Times(*(count * value for value in vars(self).values()))

    def plus(self, other: "Times") -> "Times":
        """One after the other."""
        return Times(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class _Arrival:
    """When data arrives, and whether it crossed the link to the host."""

    at_s: float
    is_from_host: bool


@dataclass
class _Clock:
    """The state of a computation's run so far."""

    spent: Times = Times()
    free_at: dict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))  # per axes
    arrives: dict[str, list[_Arrival]] = field(default_factory=lambda: defaultdict(list))  # by who waits

    def wait(self, arrival: _Arrival) -> None:
        """Waits, if the data is not there yet."""
        waited = max(0.0, arrival.at_s - self.spent.total_s)
        self.spent = self.spent.plus(Times(host_exposed_s=waited) if arrival.is_from_host else Times(exposed_s=waited))


class Timeline:
    """Plays a program through. `kernel_s` gives a kernel's time by its name, `network_s` a collective's."""

    def __init__(
        self,
        program: Program,
        collectives: Sequence[Collective],
        clock_hz: float,
        kernel_s: Mapping[str, float],
        network_s: Callable[[Collective], float],
    ) -> None:
        self._program, self._clock_hz = program, clock_hz
        self._kernel_s, self._network_s = kernel_s, network_s
        self._begins: dict[tuple[str, str], list[Collective]] = defaultdict(list)
        for collective in collectives:
            self._begins[collective.within, collective.begins].append(collective)
        self._done: dict[str, Times] = {}

    def run(self) -> Times:
        """One run of the program."""
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
        begun = self._begins.get((within.name, instruction.name), ())
        arrivals = [self._start(collective, clock) for collective in begun]
        for collective, arrives in zip(begun, arrivals, strict=True):
            if collective.ends is not None:
                clock.arrives[collective.ends].append(arrives)
            elif not collective.is_async:
                clock.wait(arrives)
        clock.spent = clock.spent.plus(self._own(instruction, within))
        for collective, arrives in zip(begun, arrivals, strict=True):
            if collective.is_async and collective.ends is None:  # in a fusion with products
                clock.wait(arrives)

    def _start(self, collective: Collective, clock: _Clock) -> _Arrival:
        """When its data arrives."""
        takes = self._network_s(collective)
        arrives = max(clock.spent.total_s, clock.free_at[collective.axes]) + takes
        clock.free_at[collective.axes] = arrives
        clock.spent = clock.spent.plus(Times(host_s=takes) if collective.is_to_host else Times(network_s=takes))
        return _Arrival(arrives, collective.is_to_host)

    def _own(self, instruction: Instruction, within: Computation) -> Times:
        """What the instruction takes of the main core, with the loops and calls in it."""
        if instruction.opcode == "while":
            runs = self._program.trips(instruction, within)
            return self._computation(instruction.called["body"]).times(runs)
        if instruction.opcode == "call":
            return self._computation(instruction.called["to_apply"])
        if instruction.opcode == "conditional":
            return self._computation(self._program.costliest(instruction))
        if is_kernel(instruction):
            return Times(kernel_s=self._kernel_s.get(kernel_name(instruction), 0.0))
        return Times(compute_s=instruction.cycles / self._clock_hz)
