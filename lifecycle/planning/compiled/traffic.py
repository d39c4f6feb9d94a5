"""Bytes that an instruction moves to and from HBM: our own count, since the compiler's text has none.

A fusion computes only what its result needs, so its reads are derived backwards from its root: the share of each value
that is needed. A slice needs only its own part of a stack, also through views, elementwise operations and nested
fusions. What is written into a stack, a slice or scattered rows, is written in place: the rest of the stack is neither
read nor written. What must
hold: no stack counts in full where only a slice of it is used. Operands whose use is not followed (by products,
reductions, paddings) count once and in full; a second read by a kernel or product for lack of VMEM is not seen, so the
count is not a bound in either direction.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator

from lifecycle.planning.compiled.hlo import HBM, Computation, Instruction, Module, Shape

# Names for existing data, or containers whose instructions are counted separately
_NO_TRAFFIC = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done",
}  # fmt: skip
_VIEWS = {"bitcast", "reshape", "transpose", "copy", "convert", "get-tuple-element"}
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written into the first one, in place
# Each element of their result needs more than one element of an operand, even if the shapes are equal
_WHOLE = {"convolution", "dot", "sort", "scatter", "custom-call", "reduce-window", "all-reduce", "all-to-all"}
# Another core or the network reads at the start and writes at the done
_COLLECTIVE = re.compile(
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)"
    r"-(start|done)"
)
_ALLOCATES = 'custom_call_target="AllocateBuffer"'  # its result is uninitialised memory


def traffic(module: Module, instruction: Instruction, within: Computation) -> float:
    """Bytes of one run, per device. Loops and calls count as 0: their instructions are counted separately."""
    opcode = instruction.opcode
    if (part := _COLLECTIVE.fullmatch(opcode)) is not None:
        if part[2] == "done":
            return _hbm(instruction.shapes)
        return sum(_hbm(within.by_name[name].shapes) for name in instruction.operands)
    operands = [within.by_name[name] for name in instruction.operands]
    if opcode == "fusion-start":  # a GPU's copy beside the computation; its type is (operands, results, context)
        inside = module.computations[instruction.called["calls"]]
        return _of_fusion(module, inside, instruction.shapes[sum(len(o.shapes) for o in operands) :], operands)
    if opcode.endswith("-start"):
        return _moved(instruction)
    if opcode in _NO_TRAFFIC or opcode.endswith(("-done", "-update")) or _ALLOCATES in instruction.attributes:
        return 0.0
    if opcode == "fusion":
        return _of_fusion(module, module.computations[instruction.called["calls"]], instruction.shapes, operands)
    if opcode in _UPDATES:
        piece = operands[_UPDATES[opcode]]
        return _hbm(piece.shapes) + _like(piece.shapes[0], instruction.shapes[0])
    if opcode in _SLICES:
        return _like(instruction.shapes[0], operands[0].shapes[0]) + _hbm(instruction.shapes)
    return sum(_hbm(o.shapes) for o in operands) + _hbm(instruction.shapes)


def ends_of_copy(start: Instruction) -> tuple[Shape, Shape] | None:
    """Source and target of an asynchronous copy, with the shape that is moved; `None` for any other start.

    A copy's result is (target, source, context), a slice's ((source, indices), target, context), an update's ((stack,
    slice, indices), stack, context).
    """
    if start.opcode == "copy-start":
        target, source = start.shapes[:2]
        return source, target
    if start.opcode in ("slice-start", "dynamic-slice-start"):
        source, target = start.shapes[0], start.shapes[-2]
        return Shape(source.dtype, target.dims, source.space), target
    if start.opcode == "dynamic-update-slice-start":
        stack, piece = start.shapes[:2]
        return piece, Shape(stack.dtype, piece.dims, stack.space)
    return None


def _moved(start: Instruction) -> float:
    """Bytes that an asynchronous copy reads from and writes to HBM."""
    ends = ends_of_copy(start)
    return 0.0 if ends is None else _hbm(ends)


def _of_fusion(module: Module, inside: Computation, results: tuple[Shape, ...], operands: list[Instruction]) -> float:
    shares = _needed(module, inside, [1.0] * len(_results(inside)))
    read = sum(
        _hbm(operand.shapes) * shares[inside.parameters[i].name]
        for i, operand in enumerate(operands)
        if i in inside.parameters
    )
    written = zip(_results(inside), results, strict=False)
    return read + sum(_hbm((shape,)) * _written(module, inside, name) for name, shape in written)


def _results(inside: Computation) -> tuple[str, ...]:
    """The values that a fusion returns: its root, or the elements of a root tuple."""
    root = inside.root
    return root.operands if root.opcode == "tuple" else (root.name,)


def _updates(module: Module, inside: Computation) -> Iterator[str]:
    """Updates of a stack that is a result of the fusion: the stack is updated in place."""
    for name in _results(inside):
        instruction = inside.by_name[name]
        while instruction.opcode == "bitcast":
            instruction = inside.by_name[instruction.operands[0]]
        if instruction.opcode in _UPDATES:
            yield instruction.name


def _needed(module: Module, inside: Computation, results: list[float]) -> dict[str, float]:
    """The share (0 to 1) of each value in a fusion's computation that these shares of its results need."""
    shares: dict[str, float] = defaultdict(float)
    for name, share in zip(_results(inside), results, strict=True):
        shares[name] = max(shares[name], share)
    in_place = set(_updates(module, inside))
    for instruction in reversed(inside.instructions):  # users come after what they use
        if instruction.opcode == "tuple" and instruction.is_root:
            continue
        for i, (name, share) in enumerate(_of_operands(module, inside, instruction, shares[instruction.name])):
            if i == 0 and instruction.name in in_place:
                continue
            is_slice = instruction.opcode in (*_SLICES, "fusion")
            shares[name] = min(1.0, shares[name] + share) if is_slice else max(shares[name], share)
    return shares


def _of_operands(
    module: Module, inside: Computation, instruction: Instruction, share: float
) -> Iterator[tuple[str, float]]:
    """The share of each operand that an instruction needs for this share of its own result."""
    called = module.computations[instruction.called["calls"]] if instruction.opcode == "fusion" else None
    inner = _needed(module, called, [share] * len(_results(called))) if called else {}
    for i, name in enumerate(instruction.operands):
        if not share:
            yield name, 0.0
        elif called is not None:
            yield name, inner[called.parameters[i].name] if i in called.parameters else 0.0
        else:
            yield name, _of_operand(inside, instruction, i, share)


def _of_operand(inside: Computation, instruction: Instruction, index: int, share: float) -> float:
    operand = inside.by_name[instruction.operands[index]]
    size, result = _elements(operand), _elements(instruction)
    if instruction.opcode in _SLICES and index == 0:
        return min(1.0, share * result / size)
    if instruction.opcode in _VIEWS:
        return share
    is_elementwise = instruction.opcode not in _WHOLE and _dims(operand) == _dims(instruction)
    return share if is_elementwise else 1.0


def _written(module: Module, inside: Computation, name: str) -> float:
    """The share of a result that is written: of a stack that is updated in place, only the slice."""
    instruction = inside.by_name[name]
    if instruction.opcode == "bitcast":
        return _written(module, inside, instruction.operands[0])
    if instruction.opcode in _UPDATES:
        piece = instruction.operands[_UPDATES[instruction.opcode]]
        return min(1.0, _elements(inside.by_name[piece]) / _elements(instruction))
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called["calls"]]
        if inner.root.opcode != "tuple":
            return _written(module, inner, inner.root.name)
    if instruction.opcode == "get-tuple-element":
        source = inside.by_name[instruction.operands[0]]
        if source.opcode == "fusion":
            inner = module.computations[source.called["calls"]]
            return _written(module, inner, _results(inner)[int(instruction.attribute("index") or 0)])
    return 1.0


def _dims(instruction: Instruction) -> tuple[int, ...]:
    return instruction.shapes[0].dims if instruction.shapes else ()


def _elements(instruction: Instruction) -> int:
    return max(1, math.prod(_dims(instruction)))


def _hbm(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.num_bytes for shape in shapes if shape.space == HBM))


def _like(piece: Shape, stack: Shape) -> float:
    """Bytes of a piece of an array; 0 if the array is not in HBM."""
    return float(piece.num_bytes) if stack.space == HBM else 0.0
