r"""Answers to maths questions, in LaTeX or plain, as trees: `\frac{1}{2}`, `x^2+1`, `(1, 2]`, `\{1, 2\}`, `50\%`.

Nothing is computed here, and nothing of a text is ever executed. A tree is a tuple of a name and its parts:
`("number", "1.5")`, `("symbol", "x")`, `("call", "sin", tree)`, operators `+ * / ^ neg % ! abs root`, and what has
several values: `("set", ...)` in any order, `("group", "(]", ...)` in its order, `("relation", "<", left, right)`,
`("matrix", row, ...)`.
"""

from collections.abc import Callable
from typing import Any

from lifecycle.evals.verifiers.formula_tokens import (
    CLOSED,
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    MATRICES,
    OPEN,
    RELATIONS,
    SETS,
    FormulaError,
    tokens_of,
)

type Tree = tuple[Any, ...]

DEEPEST = 200


def parsed(text: str) -> Tree:
    """The tree of an answer; raises `FormulaError`."""
    tokens = tokens_of(text)
    if not tokens:
        raise FormulaError("empty")
    parser = _Parser(tokens)
    tree = parser.answer()
    if parser.token:
        raise FormulaError(f"unexpected {parser.token!r}")
    return tree


class _Parser:
    """Recursive descent over tokens; a method per precedence, from weak to strong."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._at, self._depth, self._bars = tokens, 0, 0, 0

    @property
    def token(self) -> str:
        """The next token; empty at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        """The next token if it is one of `wanted`, else nothing."""
        token = self.token
        if token and (not wanted or token in wanted):
            self._at += 1
            return token
        return ""

    def _need(self, token: str) -> None:
        if not self._take(token):
            raise FormulaError(f"expected {token!r} before {self.token!r}")

    def answer(self) -> Tree:
        """Parts with commas between them, in any order."""
        parts = [self._relation()]
        while self._take(",", ";"):
            if not self.token:
                break
            parts.append(self._relation())
        return parts[0] if len(parts) == 1 else ("set", *parts)

    def _relation(self) -> Tree:
        sides, signs = [self._union()], []
        while (sign := RELATIONS.get(self.token.lstrip("\\"))) or self.token == r"\in":
            self._take()
            signs.append(sign or "in")
            sides.append(self._union())
        if not signs:
            return sides[0]
        if len(signs) == 1:
            return ("relation", signs[0], *sides)
        return ("chain", tuple(signs), *sides)

    def _union(self) -> Tree:
        parts = [self._sum()]
        while name := self._take(r"\cup", r"\cap"):
            parts = [(name[1:], *parts, self._sum())] if name == r"\cap" else [*parts, self._sum()]
        return parts[0] if len(parts) == 1 else ("cup", *parts)

    def _sum(self) -> Tree:
        total: Tree = self._product()
        while sign := self._take("+", "-", r"\pm", r"\mp"):
            right = self._product()
            if sign in (r"\pm", r"\mp"):
                total = ("set", ("+", total, right), ("+", total, ("neg", right)))
            else:
                total = ("+", total, right if sign == "+" else ("neg", right))
        return total

    def _product(self) -> Tree:
        total: Tree = self._signed()
        while True:
            if self._take("*"):
                total = ("*", total, self._signed())
            elif self._take("/", ":"):
                total = ("/", total, self._signed())
            elif total[0] == "number" and self.token[:1].isdigit():
                total = self._spaced_fraction(total)
            elif self._begins_factor():
                right = self._power()
                total = _mixed(total, right) or ("*", total, right)
            else:
                return total

    def _spaced_fraction(self, whole: Tree) -> Tree:
        """`1 1/2`, one and a half."""
        above: Tree = ("number", self._take())
        self._need("/")
        total = _mixed(whole, ("/", above, self._power()))
        if total is None:
            raise FormulaError("two numbers side by side")
        return total

    def _begins_factor(self) -> bool:
        token = self.token
        if not token or token in (",", ";", "&", r"\row", "_", "^", "'", r"\}", "}", ")", "]", "!", "%", "+", "-"):
            return False
        if token == "|":
            return self._bars == 0
        name = token.lstrip("\\")
        return name not in RELATIONS and name not in ("in", "cup", "cap", "pm", "mp") and not token.startswith(r"\end:")

    def _signed(self) -> Tree:
        sign = self._take("-", "+", r"\pm", r"\mp")
        if not sign:
            return self._power()
        inner = self._nested(self._signed)
        if sign in (r"\pm", r"\mp"):
            return ("set", inner, ("neg", inner))
        return inner if sign == "+" else ("neg", inner)

    def _power(self) -> Tree:
        base = self._postfix()
        if self._take("^"):
            return ("^", base, self._nested(self._exponent))
        return base

    def _exponent(self) -> Tree:
        sign = self._take("-", "+")
        power = self._power()
        return ("neg", power) if sign == "-" else power

    def _postfix(self) -> Tree:
        inner: Tree = self._nested(self._atom)
        while sign := self._take("!", "%", "'"):
            inner = ("symbol", f"{inner[1]}'") if sign == "'" and inner[0] == "symbol" else (sign, inner)
        return inner

    def _nested(self, read: Callable[[], Tree]) -> Tree:
        self._depth += 1
        if self._depth > DEEPEST:
            raise FormulaError("nested too deep")
        tree = read()
        self._depth -= 1
        return tree

    def _atom(self) -> Tree:
        token = self._take()
        if not token:
            raise FormulaError("ends too early")
        if token[0].isdigit() or token[0] == ".":
            return ("number", token)
        if token in OPEN:
            return self._group(token)
        if token == "{":
            inner = self.answer()
            self._need("}")
            return inner
        if token in ("|", r"\|"):
            return self._between_bars(token)
        if token[0] == "\\":
            return self._command(token[1:])
        if token.isalpha():
            return self._symbol(token)
        raise FormulaError(f"unexpected {token!r}")

    def _between_bars(self, bar: str) -> Tree:
        self._bars += 1
        inner = self._sum()
        self._bars -= 1
        self._need(bar)
        return ("abs", inner)

    def _group(self, opened: str) -> Tree:
        bars, self._bars = self._bars, 0
        if opened == r"\{" and self._take(r"\}"):
            return ("symbol", "empty")
        parts = [self._relation()]
        while self._take(",", ";"):
            parts.append(self._relation())
        closed = self._take(*CLOSED)
        self._bars = bars
        if not closed or (opened == r"\{") != (closed == r"\}"):
            raise FormulaError(f"{opened!r} is closed by {closed or self.token!r}")
        if opened == r"\{":
            return ("set", *parts)
        if len(parts) == 1:
            return parts[0]
        return ("group", opened + closed, *parts)

    def _symbol(self, name: str) -> Tree:
        if not self._take("_"):
            return ("symbol", name)
        below = self._take()
        if below == "{":
            below = ""
            while self.token and self.token != "}":
                below += self._take()
            self._need("}")
        return ("symbol", f"{name}_{below}")

    def _command(self, name: str) -> Tree:
        if name in CONSTANTS:
            return ("symbol", CONSTANTS[name])
        if name.startswith(("set:", "text:")):
            kind, _, rest = name.partition(":")
            return ("symbol", SETS[rest] if kind == "set" else rest)
        if name.startswith("begin:") and name[6:] in MATRICES:
            return self._matrix(name[6:])
        if name == "frac":
            return ("/", self._argument(), self._argument())
        if name in ("binom", "dbinom", "tbinom"):
            return ("call", "binom", self._argument(), self._argument())
        if name == "sqrt":
            return self._root()
        if name in FUNCTIONS:
            return self._call(name)
        if name in GREEK:
            return self._symbol(name)
        raise FormulaError(rf"unknown \{name}")

    def _argument(self) -> Tree:
        r"""What a command takes: a group in braces, or one token, of a number one digit (`\frac12`)."""
        if self.token and self.token.isdigit() and len(self.token) > 1:
            number = self._tokens[self._at]
            self._tokens[self._at] = number[1:]
            return ("number", number[0])
        return self._nested(self._atom)

    def _root(self) -> Tree:
        degree: Tree = ("number", "2")
        if self._take("["):
            degree = self._sum()
            self._need("]")
        return ("root", degree, self._nested(self._postfix))

    def _call(self, name: str) -> Tree:
        base: Tree | None = None
        power: Tree | None = None
        if self._take("_"):
            base = self._argument()
        if self._take("^"):
            power = self._nested(self._exponent)
        inner = self._nested(self._call_argument)
        arguments = inner[2:] if inner[0] == "group" else (inner,)
        call: Tree = ("call", name, *arguments) if base is None else ("call", "log", *arguments, base)
        return call if power is None else ("^", call, power)

    def _call_argument(self) -> Tree:
        if self.token in OPEN or self.token == "{":
            return self._atom()
        sign = self._take("-")
        inner: Tree = self._power()
        while self._begins_factor() and self.token not in OPEN and self.token.lstrip("\\") not in FUNCTIONS:
            inner = ("*", inner, self._power())
        return ("neg", inner) if sign else inner

    def _matrix(self, name: str) -> Tree:
        rows: list[tuple[Tree, ...]] = []
        row = [self._sum()]
        while not self._take(rf"\end:{name}"):
            if self._take("&"):
                row.append(self._sum())
            else:
                self._need(r"\row")
                rows.append(tuple(row))
                row = [] if self.token == rf"\end:{name}" else [self._sum()]
        return ("matrix", *rows, *([tuple(row)] if row else []))


def _mixed(left: Tree, right: Tree) -> Tree | None:
    r"""A whole number and a fraction behind it, `1\frac{1}{2}` or `1\frac{1}{2}\%`, as their sum."""
    if right[0] == "%":
        inner = _mixed(left, right[1])
        return None if inner is None else ("%", inner)
    is_whole = left[0] == "number" and left[1].isdigit()
    is_fraction = right[0] == "/" and all(part[0] == "number" and part[1].isdigit() for part in right[1:])
    return ("+", left, right) if is_whole and is_fraction else None
