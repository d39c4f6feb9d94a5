"""Compares answers by sympy, in a process that may be ended: a short formula can take hours, or all memory.

The trees of `formulas.py` become sympy's objects by their constructors; nothing of a text is executed.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lifecycle.core.isolation.confine import Limits
from lifecycle.evals.verifiers.formula_tokens import FormulaError
from lifecycle.evals.verifiers.formulas import Tree, parsed
from lifecycle.evals.verifiers.maths import LARGEST_EXPONENT, meant

try:
    import sympy
except ImportError:
    raise ImportError(
        "maths answers beyond numbers need sympy; install the extra: pip install 'lifecycle[rl]'"
    ) from None

DIGITS = 30
SAME: Any = sympy.Float("1e-22", DIGITS)
# Where formulas with symbols are compared: equal in all of these places is equal, for formulas that people write.
PLACES: tuple[Any, ...] = (sympy.Rational(7, 11), sympy.Rational(-13, 5), sympy.Rational(29, 3), sympy.Rational(-3, 17))
SPECIAL = {"pi": sympy.pi, "oo": sympy.oo, "e": sympy.E, "i": sympy.I}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "asin": sympy.asin, "acos": sympy.acos,
    "atan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh, "tanh": sympy.tanh, "exp": sympy.exp, "ln": sympy.log,
    "log": sympy.log, "lg": lambda x: sympy.log(x, 10), "sqrt": sympy.sqrt, "abs": sympy.Abs, "max": sympy.Max,
    "min": sympy.Min, "gcd": sympy.gcd, "lcm": sympy.lcm, "floor": sympy.floor, "ceil": sympy.ceiling,
    "binom": sympy.binomial,
}  # fmt: skip
OPERATORS: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b, "*": lambda a, b: a * b, "/": lambda a, b: a / b, "^": lambda a, b: a**b,
    "neg": lambda a: -a, "%": lambda a: a / 100, "!": sympy.factorial, "abs": sympy.Abs,
    "root": lambda degree, a: a ** (1 / degree),
}  # fmt: skip
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def is_equal(item: Sequence[Any], limits: Limits) -> bool:
    """Whether two answers, texts, are the same; the third of the item is the relative difference they may have."""
    del limits
    left, right, tolerance = parsed(item[0]), parsed(item[1]), item[2]
    comparison = Comparison(tolerance)
    try:
        are_equations = left[:2] == right[:2] == ("relation", "=")
        if are_equations and comparison.equal(left, right):
            return True
        return comparison.equal(simplified(left), simplified(right))
    except FormulaError:
        return False  # such as a sum of sets


def simplified(tree: Tree) -> Tree:
    """An answer without the name of what it is: 5 of `x = 5`, an interval for `1 < x < 2`, the one element of a set."""
    kind = tree[0]
    if kind == "relation" and tree[1] in ("=", "in") and _names(tree[2]):
        return simplified(tree[3])
    if kind in ("relation", "chain"):
        return _interval(tree) or tree
    if kind in ("set", "cup"):
        parts = [simplified(part) for part in tree[1:]]
        flat = [inner for part in parts for inner in (part[1:] if part[0] == kind else (part,))]
        return flat[0] if len(flat) == 1 else (kind, *flat)
    return tree


def _names(tree: Tree) -> bool:
    """Whether a side of an equation only names something: `x`, `f(x)`."""
    if tree[0] == "*":
        return tree[1][0] == "symbol" and tree[2][0] in ("symbol", "group")
    return tree[0] == "symbol"


def _interval(tree: Tree) -> Tree | None:
    """The interval of an inequality of one symbol: `(2, oo)` of `x > 2`, `[1, 2)` of `1 <= x < 2`."""
    infinity: Tree = ("symbol", "oo")
    if tree[0] == "relation":
        _, sign, left, right = tree
        if left[0] != "symbol" and right[0] == "symbol":
            sign, left, right = FLIPPED.get(sign, sign), right, left
        if left[0] != "symbol" or sign not in ("<", ">", "<=", ">="):
            return None
        end = "=" in sign
        if sign[0] == "<":
            return ("group", "(]" if end else "()", ("neg", infinity), right)
        return ("group", "[)" if end else "()", right, infinity)
    _, signs, *sides = tree
    if len(signs) != 2 or sides[1][0] != "symbol" or any(sign not in FLIPPED or sign[0] not in "<>" for sign in signs):
        return None
    if signs[0][0] == ">":
        signs, sides = tuple(FLIPPED[sign] for sign in reversed(signs)), sides[::-1]
    brackets = ("[" if "=" in signs[0] else "(") + ("]" if "=" in signs[1] else ")")
    return ("group", brackets, sides[0], sides[2]) if signs[1][0] == "<" else None


class Comparison:
    """Equality of trees, numbers within a relative tolerance."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = sympy.Rational(str(tolerance))

    def equal(self, left: Tree, right: Tree) -> bool:
        """Whether two answers are the same; raises `FormulaError` for trees without a value."""
        if left == right:
            return True
        kinds = left[0], right[0]
        if kinds in (("set", "set"), ("cup", "cup"), ("cap", "cap")):
            return self._same_parts(left[1:], right[1:])
        if kinds == ("group", "group"):
            return left[1] == right[1] and self._in_order(left[2:], right[2:])
        if kinds == ("matrix", "matrix"):
            rows = zip(left[1:], right[1:], strict=False)
            return len(left) == len(right) and all(self._in_order(a, b) for a, b in rows)
        if kinds == ("relation", "relation"):
            return self._same_relation(left, right)
        if any(kind in ("set", "cup", "cap", "group", "matrix", "relation", "chain") for kind in kinds):
            return False
        return any(self._same_value(a, b) for a, b in meant(left, right, value(left), value(right)))

    def _in_order(self, left: Sequence[Tree], right: Sequence[Tree]) -> bool:
        return len(left) == len(right) and all(map(self.equal, left, right))

    def _same_parts(self, left: Sequence[Tree], right: Sequence[Tree]) -> bool:
        within = all(any(self.equal(a, b) for b in right) for a in left)
        return within and all(any(self.equal(a, b) for a in left) for b in right)

    def _same_relation(self, left: Tree, right: Tree) -> bool:
        """Equal sides, also exchanged; equations also if one is a multiple of the other."""
        _, sign, a, b = left
        _, other, c, d = right
        if sign == other and self.equal(a, c) and self.equal(b, d):
            return True
        if sign == FLIPPED.get(other) and self.equal(a, d) and self.equal(b, c):
            return True
        if sign != "=" or other != "=":
            return False
        ratio = sympy.simplify((value(a) - value(b)) / (value(c) - value(d)))
        return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)

    def _same_value(self, left: Any, right: Any) -> bool:
        if left == right:
            return True
        symbols = sorted(left.free_symbols | right.free_symbols, key=str)
        if not symbols:
            return self._near(left, right)
        found = [self._same_at(left, right, symbols, shift) for shift in range(len(PLACES))]
        if all(same is None for same in found):
            return sympy.simplify(left - right) == 0
        return all(same is not False for same in found)

    def _same_at(self, left: Any, right: Any, symbols: list[Any], shift: int) -> bool | None:
        """Whether both have the same value in a place; None where one has none."""
        place = {symbol: PLACES[(shift + n) % len(PLACES)] + n * shift for n, symbol in enumerate(symbols, 1)}
        values = [sympy.N(side.subs(place), DIGITS) for side in (left, right)]
        return self._near(*values) if all(one.is_number and one.is_finite for one in values) else None

    def _near(self, left: Any, right: Any) -> bool:
        if left.is_finite is False or right.is_finite is False:
            return False  # equal infinities were equal before
        if left.is_Rational and right.is_Rational:
            return bool(abs(left - right) <= self._tolerance * max(abs(left), abs(right)))
        one, other, apart = (sympy.N(item, DIGITS) for item in (left, right, left - right))
        scale: Any = max(sympy.Integer(1), abs(one), abs(other))
        return bool(abs(apart) <= max(SAME, sympy.Float(self._tolerance, DIGITS)) * scale)


def value(tree: Tree) -> Any:
    """A tree as sympy's expression."""
    kind = tree[0]
    if kind == "number":
        if abs(int(tree[1].lower().partition("e")[2] or 0)) > LARGEST_EXPONENT:
            raise FormulaError("a number of more digits than there is room for")
        return sympy.Rational(tree[1])
    if kind == "symbol":
        return SPECIAL.get(tree[1]) or sympy.Symbol(tree[1])
    if kind == "call":
        return FUNCTIONS[tree[1]](*map(value, tree[2:]))
    if kind in OPERATORS:
        return OPERATORS[kind](*map(value, tree[1:]))
    raise FormulaError(f"{kind} has no value")
