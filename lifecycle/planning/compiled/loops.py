"""Trip counts of a compiled module's loops.

XLA writes a known trip count into the loop's backend configuration (`known_trip_count`); the TPU compiler does not, so
it is derived from the text: start, step and bound of the counter that the condition compares.
"""

import re
from dataclasses import dataclass
from functools import partial

from lifecycle.planning.compiled.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "broadcast"}  # pass a scalar through
_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}


@dataclass(frozen=True)
class _Scope:
    """A computation and the operands bound to its parameters: instructions of the scope that calls it."""

    computation: Computation
    operands: tuple[str, ...] = ()
    outer: "_Scope | None" = None


def trip_count(module: Module, loop: Instruction, within: Computation) -> int | None:
    """The trip count of a `while`; `None` if the text does not show it, as with a bound computed at run time."""
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    outside = _Scope(within)
    condition = _Scope(module.computations[loop.called["condition"]], loop.operands, outside)
    compared = _comparison(module, condition)
    if compared is None:
        return None
    direction, left, right, scope = compared
    counter, bound = _counter(scope, left), _constant(module, scope, right)
    if counter is None or bound is None:
        counter, bound = _counter(scope, right), _constant(module, scope, left)
        direction = _FLIPPED.get(direction, direction)
    if counter is None or bound is None:
        return None
    start = _element(module, outside, loop.operands[0], counter)
    step = _step(module, loop, counter)
    if start is None or not step:
        return None
    return _count(start, step, bound, direction)


def _count(start: int, step: int, bound: int, direction: str) -> int | None:
    """Trips of a counter from `start` by `step` for as long as its comparison (`direction`) with `bound` holds."""
    if (direction in ("LT", "LE")) != (step > 0) or direction not in _FLIPPED:
        return None
    distance = (bound - start) * (1 if step > 0 else -1) + (direction in ("LE", "GE"))
    return max(0, -(-distance // abs(step)))


def _comparison(module: Module, scope: _Scope) -> tuple[str, str, str, _Scope] | None:
    """Direction, both sides and scope of the comparison at a condition's root, also inside a fusion."""
    root = scope.computation.root
    if root.opcode == "fusion":
        return _comparison(module, _Scope(module.computations[root.called["calls"]], root.operands, scope))
    if root.opcode != "compare":
        return None
    return root.attribute("direction") or "", root.operands[0], root.operands[1], scope


def _counter(scope: _Scope, name: str) -> int | None:
    """The index of this value in the loop's state; `None` if it is not an element of it."""
    instruction = scope.computation.by_name[name]
    if instruction.opcode in _SAME:
        return _counter(scope, instruction.operands[0])
    if instruction.opcode == "parameter" and scope.outer is not None and scope.outer.outer is not None:
        return _counter(scope.outer, scope.operands[int(instruction.argument)])
    if instruction.opcode == "get-tuple-element" and scope.computation.by_name[instruction.operands[0]].opcode == (
        "parameter"
    ):
        return int(instruction.attribute("index") or 0)
    return None


def _constant(module: Module, scope: _Scope | None, name: str) -> int | None:
    """A scalar's value if it is a constant integer; also looked up outside the loop, since loops carry invariants."""
    if scope is None:
        return None
    instruction = scope.computation.by_name[name]
    again = partial(_constant, module)
    if instruction.opcode == "constant":
        return int(instruction.argument) if re.fullmatch(r"-?\d+", instruction.argument) else None
    if instruction.opcode in _SAME:
        return again(scope, instruction.operands[0])
    if instruction.opcode == "parameter" and scope.operands and scope.outer is not None:
        return again(scope.outer, scope.operands[int(instruction.argument)])
    if instruction.opcode == "get-tuple-element":
        source, index = scope.computation.by_name[instruction.operands[0]], int(instruction.attribute("index") or 0)
        if source.opcode == "parameter" and scope.outer is not None:
            body = next((i for i in scope.outer.computation.instructions if i.operands == scope.operands), None)
            if body is not None and body.opcode == "while" and not _is_invariant(module, body, index):
                return None
            return _element(module, scope.outer, scope.operands[0], index)
    return None


def _is_invariant(module: Module, loop: Instruction, index: int) -> bool:
    """Whether a loop passes this element of its state through unchanged."""
    body = module.computations[loop.called["body"]]
    if body.root.opcode != "tuple":
        return False
    return _counter(_Scope(body), body.root.operands[index]) == index


def _element(module: Module, scope: _Scope, name: str, index: int) -> int | None:
    """The constant at this index of a tuple."""
    instruction = scope.computation.by_name[name]
    if instruction.opcode == "tuple":
        return _constant(module, scope, instruction.operands[index])
    if instruction.opcode in _SAME:
        return _element(module, scope, instruction.operands[0], index)
    return None


def _step(module: Module, loop: Instruction, index: int) -> int | None:
    """The amount that the body adds to the counter, also inside a fusion."""
    body = module.computations[loop.called["body"]]
    if body.root.opcode != "tuple":
        return None
    scope, name = _Scope(body), body.root.operands[index]
    instruction = body.by_name[name]
    while instruction.opcode in _SAME:
        instruction = body.by_name[instruction.operands[0]]
    if instruction.opcode == "fusion":
        scope = _Scope(module.computations[instruction.called["calls"]], instruction.operands, scope)
        instruction = scope.computation.root
    if instruction.opcode not in ("add", "subtract"):
        return None
    steps = [_constant(module, scope, operand) for operand in instruction.operands]
    step = next((step for step in steps if step is not None), None)
    return -step if step is not None and instruction.opcode == "subtract" else step
