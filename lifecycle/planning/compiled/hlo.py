"""Parses the text of a compiled XLA module into computations and instructions.

The TPU compiler prints its module in schedule order with its cost estimates (`estimated_cycles`) in each instruction's
backend configuration. What must hold: no instruction is lost, and a line that cannot be parsed raises an error that
quotes it.
Source: the text form of XLA's HLO (openxla.org/xla/operation_semantics), libtpu 0.0.50.1.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
    "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8, "f8e3m4": 8, "f8e4m3b11fnuz": 8, "f8e8m0fnu": 8,
}  # fmt: skip
HBM = 0  # the default memory space, printed without S(n); S(2) is a core's semaphores
VMEM = 1  # S(1): a core's own memory
HOST = 5  # S(5): the host's pinned memory

_HEAD = re.compile(r"(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<dims>[\d,<= ]*)\](\{(?P<layout>[^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_OPCODE = re.compile(r" ?(?P<opcode>[\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """One array in an instruction's type."""

    dtype: str
    dims: tuple[int, ...]
    space: int = HBM

    @property
    def num_bytes(self) -> int:
        """Size in bytes, without padding; raises `ValueError` for an unknown dtype."""
        if self.dtype not in BITS:
            raise ValueError(f"{self.dtype}{list(self.dims)}: unknown dtype; add its bits to `BITS`")
        return math.ceil(math.prod(self.dims) * BITS[self.dtype] / 8)


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(argument), attributes`."""

    name: str
    type: str
    opcode: str
    argument: str
    attributes: str
    is_root: bool

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of its result; those of a tuple in order."""
        return tuple(read_shapes(self.type))

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        return tuple(_NAME.findall(self.argument))

    @cached_property
    def cycles(self) -> int:
        """The compiler's own estimate; 0 if it gives none (kernels, collectives, asynchronous copies)."""
        match = _CYCLES.search(self.attributes)
        return int(match[1]) if match else 0

    @cached_property
    def called(self) -> dict[str, str]:
        """Names of the computations that it calls, by role."""
        roles = dict(_CALLED.findall(self.attributes))
        branches = _BRANCHES.search(self.attributes)
        if branches:
            roles |= {f"branch {i}": name for i, name in enumerate(_NAME.findall(branches[1]))}
        return roles

    def attribute(self, name: str) -> str | None:
        """The value of `name=...` up to the next attribute, without its braces; `None` if absent."""
        match = re.search(rf"(?:^|, ){re.escape(name)}=", self.attributes)
        if match is None:
            return None
        rest = self.attributes[match.end() :]
        if rest.startswith("{"):
            return rest[1 : _closing(rest, 0)]
        return rest.partition(",")[0].strip()


@dataclass(frozen=True)
class Computation:
    """A list of instructions in schedule order."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose value the computation returns."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by position."""
        return {int(i.argument): i for i in self.instructions if i.opcode == "parameter"}

    def users(self, name: str) -> list[Instruction]:
        """The instructions that have `name` as an operand."""
        return [i for i in self.instructions if name in i.operands]


@dataclass(frozen=True)
class Module:
    """All computations of a program; `entry` is where it starts."""

    computations: dict[str, Computation]
    entry: Computation
    is_scheduled: bool


def read_shapes(text: str) -> Iterator[Shape]:
    """The arrays in the text of a type."""
    for match in _SHAPE.finditer(text):
        dims = tuple(int(d.strip("<= ")) for d in match["dims"].split(",") if d.strip("<= "))
        space = _SPACE.search(match["layout"] or "")
        yield Shape(match["dtype"], dims, int(space[1]) if space else HBM)


def parse_module(text: str) -> Module:
    """Parses a module's text as returned by `compiled.as_text()`; raises `ValueError` for any other text."""
    if not text.startswith("HloModule"):
        raise ValueError(f"not the text of a compiled module: it begins with {text[:40]!r}")
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        if line == "}" or line.startswith("}, execution_thread="):
            computations[name] = Computation(name, tuple(_instruction(joined) for joined in lines))
            name, lines = "", []
        elif name and re.match(r"  (ROOT )?%?[\w.\-]+ = ", line):
            lines.append(line.strip())
        elif name and lines:  # the previous instruction continues: an attribute contains line breaks
            lines[-1] += line
        elif name:
            raise ValueError(f"not an instruction: {line[:200]}")
        elif (head := _HEAD.match(line)) is not None:  # between computations: a header, or the table of source files
            name = head["name"]
            entry = name if line.startswith("ENTRY") else entry
    if entry not in computations:
        raise ValueError("the module's text has no complete ENTRY computation; it is truncated")
    return Module(computations, computations[entry], "is_scheduled=true" in text[: text.index("\n")])


def _instruction(line: str) -> Instruction:
    head, _, rest = line.partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    match = _OPCODE.match(rest, max(end, 0))
    if match is None:
        raise ValueError(f"not an instruction: {line[:200]}")
    close = _closing(rest, match.end() - 1)
    return Instruction(
        name=head.removeprefix("ROOT ").lstrip("%"),
        type=rest[:end],
        opcode=match["opcode"],
        argument=rest[match.end() : close],
        attributes=rest[close + 1 :].removeprefix(", "),
        is_root=head.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """The index at which the bracket at `start` closes, skipping quoted text."""
    opening = text[start]
    closing = {"(": ")", "{": "}"}[opening]
    depth, quoted, i = 0, False, start
    for i in range(start, len(text)):
        c = text[i]
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif c == opening:
            depth += 1
        elif c == closing:
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"a bracket that does not close: {text[start : start + 200]}")
