"""Totals for one run of a compiled module: cycles, matrix products, kernels and memory traffic.

XLA's `cost_analysis` counts a loop's body once, so the module's text is walked from its entry. A loop's body counts
once per trip (not at all if its trip count is unknown and the model's code marks it as seldom needed). A conditional
counts as its costliest branch: the one with the most kernels, which have no cycle estimate, and among equals the one
with the most cycles. Cycles are of the chip's clock, for the core that runs the matrix products, and come from a
`CostModel`: the TPU compiler's own estimates (`estimated_cycles`), or, for GPUs, a roofline (`roofline.py`).
Asynchronous copies, collectives and work on other cores have none; neither do kernels, which are counted by name.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from lifecycle.planning.compiled.flops import product_flops
from lifecycle.planning.compiled.hlo import Computation, Instruction, Module, Shape
from lifecycle.planning.compiled.loops import trip_count
from lifecycle.planning.compiled.names import is_causal, is_kernel, is_seldom, kernel_name, most_trips, operation
from lifecycle.planning.compiled.traffic import traffic


@dataclass(frozen=True)
class Executed:
    """An instruction, its computation and how often it runs.

    `is_on_other_core` means that a core other than the main one runs it, `is_chosen` that it runs because a
    conditional's branch was taken.
    """

    instruction: Instruction
    within: Computation
    count: int
    is_on_other_core: bool = False
    is_chosen: bool = False


@dataclass(frozen=True)
class CostModel:
    """Who says how many cycles an instruction takes, without the loops and calls in it."""

    cycles: "Callable[[Program, Instruction, Computation], int]"
    source: str  # in words
    slowest: float = 1.0  # the cycles at the slow end of the range, in units of these

    @staticmethod
    def of_compiler() -> "CostModel":
        """The compiler itself, in the module's text."""
        return CostModel(lambda _, instruction, __: instruction.cycles, "the compiler's estimate")


@dataclass(frozen=True)
class Kernel:
    """Calls of one kernel with the same operand and result shapes."""

    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    calls: int
    is_causal: bool = True  # whether it may leave out what the mask hides; False: cuDNN without a mask that it knows


@dataclass(frozen=True)
class Choice:
    """Conditionals of one operation: their total cycles with the costliest branches and with the cheapest ones."""

    operation: str
    runs: int
    most: int
    least: int


@dataclass(frozen=True)
class Spender:
    """Cycles of one operation in the model's code, with or without a matrix product."""

    operation: str
    is_product: bool
    cycles: int
    runs: int


class Program:
    """The totals of one module. Every figure is per device and run."""

    def __init__(self, module: Module, cost: CostModel | None = None) -> None:
        self.module, self.cost = module, cost or CostModel.of_compiler()
        self.unknown_loops: list[str] = []
        self.seldom_loops: list[str] = []
        self._cycles_of = cache(self._computation_cycles)
        self._flops_of = cache(self._computation_flops)
        self._kernels_of = cache(self._computation_kernels)
        self.executed = tuple(self._walk(module.entry, 1, False, False))

    @property
    def cycles(self) -> int:
        """The main core's estimated cycles, excluding kernels and collectives."""
        return self._cycles_of(self.module.entry.name)

    @property
    def product_cycles(self) -> int:
        """The main core's estimated cycles in instructions that contain a matrix product."""
        return sum(
            self.own_cycles(e.instruction, e.within) * e.count
            for e in self._main()
            if self.flops_in(e.instruction, e.within)
        )

    @property
    def matmul_flops(self) -> float:
        """FLOPs of matrix products outside kernels."""
        return sum(self.flops_in(e.instruction, e.within) * e.count for e in self.executed)

    @property
    def narrow_flops(self) -> float:
        """FLOPs of those whose operands have 8 bits a value."""
        return sum(self.flops_in(e.instruction, e.within, is_narrow=True) * e.count for e in self.executed)

    @property
    def hbm_bytes(self) -> float:
        """Bytes that instructions and kernels read from and write to HBM, as `traffic.py` counts them."""
        return sum(traffic(self.module, e.instruction, e.within) * e.count for e in self.executed)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """Calls of kernels, grouped by name, operands and results."""
        calls: dict[tuple[str, tuple[Shape, ...], tuple[Shape, ...], bool], int] = defaultdict(int)
        for e in self.executed:
            found = self.kernel_in(e.instruction, e.within)
            if found is not None and e.count:  # 0 in a loop that does not count
                kernel, around = found
                operands = tuple(s for name in kernel.operands for s in around.by_name[name].shapes)
                calls[kernel_name(kernel), operands, kernel.shapes, is_causal(kernel)] += e.count
        return tuple(Kernel(*key[:3], number, key[3]) for key, number in calls.items())

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Conditionals whose branches differ in cycles; a nested one is part of the outer one."""
        choices: dict[str, Choice] = {}
        for e in self._main():
            if e.instruction.opcode != "conditional" or e.is_chosen:
                continue
            cycles = [self._cycles_of(name) for name in e.instruction.called.values()]
            name = operation(e.instruction)
            before = choices.get(name, Choice(name, 0, 0, 0))
            most, least = e.count * self._cycles_of(self.costliest(e.instruction)), e.count * min(cycles)
            choices[name] = Choice(name, before.runs + e.count, before.most + most, before.least + least)
        return tuple(c for c in choices.values() if c.most > c.least)

    def spenders(self, most: int = 20) -> list[Spender]:
        """The operations that take the most cycles, the largest first, by the names that JAX gave them."""
        cycles: dict[tuple[str, bool], list[int]] = defaultdict(lambda: [0, 0])
        for e in self._main():
            if own := self.own_cycles(e.instruction, e.within):
                key = operation(e.instruction), bool(self.flops_in(e.instruction, e.within))
                cycles[key][0] += own * e.count
                cycles[key][1] += e.count
        spenders = [Spender(name, product, total, runs) for (name, product), (total, runs) in cycles.items()]
        return sorted(spenders, key=lambda s: -s.cycles)[:most]

    def cycles_in(self, instruction: Instruction, within: Computation) -> int:
        """Cycles of one run of an instruction, including loops and calls inside it."""
        if instruction.opcode == "while":
            return self._cycles_of(instruction.called["body"]) * self.trips(instruction, within)
        if instruction.opcode == "call":
            return self._cycles_of(instruction.called["to_apply"])
        if instruction.opcode == "conditional":
            return self._cycles_of(self.costliest(instruction))
        return self.own_cycles(instruction, within)

    def own_cycles(self, instruction: Instruction, within: Computation) -> int:
        """Cycles of one run of an instruction, without the loops and calls in it."""
        return self.cost.cycles(self, instruction, within)

    def costliest(self, conditional: Instruction) -> str:
        """The branch that counts: the one with the most kernels, then the most cycles."""
        return max(conditional.called.values(), key=lambda name: (self._kernels_of(name), self._cycles_of(name)))

    def flops_in(self, instruction: Instruction, within: Computation, is_narrow: bool = False) -> float:
        """FLOPs of a matrix product or of those inside a fusion; 0 for any other instruction. `is_narrow`: only of
        those whose operands have 8 bits a value."""
        if instruction.opcode == "fusion":
            return self._flops_of(instruction.called["calls"], is_narrow)
        return product_flops(instruction, within, is_narrow)

    def kernel_in(self, instruction: Instruction, within: Computation) -> tuple[Instruction, Computation] | None:
        """The call of a kernel that an instruction is, and the computation around the call; `None` for any other
        instruction. In a fusion a Pallas kernel reads slices of stacks in place: its operands are the slices."""
        if instruction.opcode != "fusion":
            return (instruction, within) if is_kernel(instruction) else None
        inside = self.module.computations[instruction.called["calls"]]
        return next(((inner, inside) for inner in inside.instructions if is_kernel(inner)), None)

    def _main(self) -> Iterator[Executed]:
        return (e for e in self.executed if not e.is_on_other_core)

    def _walk(
        self, computation: Computation, count: int, is_on_other_core: bool, is_chosen: bool
    ) -> Iterator[Executed]:
        for instruction in computation.instructions:
            yield Executed(instruction, computation, count, is_on_other_core, is_chosen)
            chosen = is_chosen or instruction.opcode == "conditional"
            for name, times, is_handed_over in self._inside(instruction, computation):
                on_other = is_on_other_core or is_handed_over
                yield from self._walk(self.module.computations[name], count * times, on_other, chosen)

    def _inside(self, instruction: Instruction, within: Computation) -> list[tuple[str, int, bool]]:
        """Computations that this instruction runs: name, how many times, whether on another core."""
        if instruction.opcode == "while":
            return [(instruction.called["body"], self.trips(instruction, within), False)]
        if instruction.opcode == "conditional":
            return [(self.costliest(instruction), 1, False)]
        if instruction.opcode == "call":
            return [(instruction.called["to_apply"], 1, False)]
        if instruction.opcode in ("call-start", "async-start"):
            return [(name, 1, True) for name in instruction.called.values()]
        return []

    def trips(self, loop: Instruction, within: Computation) -> int:
        """How many times a loop's body counts: its trip count; if unknown, the most that the code names, 0 for a
        seldom loop and 1 for any other."""
        trips = trip_count(self.module, loop, within)
        trips = most_trips(loop) if trips is None else trips
        if trips is None and is_seldom(loop):
            if loop.name not in self.seldom_loops:
                self.seldom_loops.append(loop.name)
            return 0
        if trips is None and loop.name not in self.unknown_loops:
            self.unknown_loops.append(loop.name)
        return 1 if trips is None else trips

    def _computation_cycles(self, name: str) -> int:
        computation = self.module.computations[name]
        return sum(self.cycles_in(i, computation) for i in computation.instructions)

    def _computation_kernels(self, name: str) -> int:
        """How many kernels a computation contains, counting each loop's body once."""
        computation = self.module.computations[name]
        inside = (
            self._kernels_of(called)
            for i in computation.instructions
            if i.opcode in ("while", "conditional", "call")
            for role, called in i.called.items()
            if role != "condition"
        )
        return sum(self.kernel_in(i, computation) is not None for i in computation.instructions) + sum(inside)

    def _computation_flops(self, name: str, is_narrow: bool) -> float:
        computation = self.module.computations[name]
        return sum(self.flops_in(instruction, computation, is_narrow) for instruction in computation.instructions)
