r"""Commands that a LaTeX document defines for itself, replaced where they are used, and the arguments of commands."""

import re
from dataclasses import dataclass

from lifecycle.data.reading.raw import UnreadableError

MAX_DEPTH = 50  # definitions in each other
MAX_UNCLOSED = 200  # of the arguments of a document
MAX_ARGUMENT = 20_000  # characters; a brace whose other one is farther away is taken as missing
DEFINITIONS = (
    "newcommand",
    "renewcommand",
    "providecommand",
    "DeclareRobustCommand",
    "def",
    "gdef",
    "DeclareMathOperator",
)
_BRACES = re.compile(r"\\.|%[^\n]*|[{}]", re.DOTALL)
_BRACKETS = re.compile(r"\\.|[{}\]]", re.DOTALL)
_NAME = re.compile(r"\s*(?:\{\s*\\([A-Za-z@]+|.)\s*\}|\\([A-Za-z@]+|.))", re.DOTALL)
_COUNT = re.compile(r"\s*\[\s*(\d)\s*\]")
_PARAMETERS = re.compile(r"((?:#\d)*)\s*(?=\{)")
_PARAMETER = re.compile(r"##|#(\d)")
_COMMAND = re.compile(r"\\([A-Za-z@]+)")
_ENDS_IN_COMMAND = re.compile(r"\\[A-Za-z@]+\Z")
_SPACES = re.compile(r"[ \t]*\n?[ \t]*")


@dataclass(frozen=True)
class _Definition:
    num_arguments: int
    default: str | None  # of the first argument, which is in brackets then
    body: str


class Arguments:
    """Reads arguments; raises `UnreadableError` once too many of them have no end."""

    def __init__(self) -> None:
        self._left = MAX_UNCLOSED

    def in_braces(self, text: str, at: int) -> int:
        """The place behind the brace that closes the one at `at`; -1 without one."""
        depth = 0
        for found in _BRACES.finditer(text, at, at + MAX_ARGUMENT):
            depth += (found[0] == "{") - (found[0] == "}")
            if depth == 0 and found[0] == "}":
                return found.end()
        self.miss()
        return -1

    def argument(self, text: str, at: int) -> tuple[str | None, int]:
        """The argument at a place, in braces or a single sign, and the place behind it; None if there is none."""
        found = _SPACES.match(text, at)
        assert found is not None
        begin = found.end()
        if text.startswith("{", begin):
            end = self.in_braces(text, begin)
            return (None, at) if end < 0 else (text[begin + 1 : end - 1], end)
        if command := _COMMAND.match(text, begin):
            return command[0], command.end()
        sign = text[begin : begin + 1]
        return (None, at) if not sign or sign in "}\n" else (sign, begin + 1)

    def optional(self, text: str, at: int) -> tuple[str | None, int]:
        """The argument in brackets at a place, and the place behind it; None if there is none."""
        begin = at
        while text.startswith((" ", "\t"), begin):
            begin += 1
        if not text.startswith("[", begin):
            return None, at
        depth = 0
        for found in _BRACKETS.finditer(text, begin + 1, begin + MAX_ARGUMENT):
            depth += (found[0] == "{") - (found[0] == "}")
            if depth < 0:
                break
            if depth == 0 and found[0] == "]":
                return text[begin + 1 : found.start()], found.end()
        self.miss()
        return None, at

    def miss(self) -> None:
        """Counts what has no end."""
        self._left -= 1
        if self._left < 0:
            raise UnreadableError("broken_markup", f"more than {MAX_UNCLOSED} braces or brackets without an end")


class Macros:
    """The commands of a document, and how much may still be replaced."""

    def __init__(self, limit: int) -> None:
        self.arguments = Arguments()
        self._known: dict[str, _Definition] = {}
        self._left = limit

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def define(self, command: str, text: str, at: int) -> int:
        """Takes the definition behind a command such as `newcommand`; returns the place behind it."""
        at += text.startswith("*", at)
        name = _NAME.match(text, at)
        if name is None:
            return at
        at, count, default = name.end(), 0, None
        if command in ("def", "gdef"):
            parameters = _PARAMETERS.match(text, at)
            if parameters is None:  # with a pattern that is more than #1#2
                return at
            count, at = len(parameters[1]) // 2, parameters.end()
        elif found := _COUNT.match(text, at):
            count, at = int(found[1]), found.end()
            default, at = self.arguments.optional(text, at)
        body, at = self.arguments.argument(text, at)
        if body is not None:
            body = f"\\operatorname{{{body}}}" if command == "DeclareMathOperator" else body
            self._known[name[1] or name[2]] = _Definition(count, default, body)
        return at

    def call(self, name: str, text: str, at: int) -> tuple[str, int]:
        """What a command stands for, with the arguments behind it, and the place behind these. Raises `UnreadableError`
        if the document grows too much."""
        definition = self._known[name]
        given: list[str] = []
        if definition.default is not None:
            first, at = self.arguments.optional(text, at)
            given.append(definition.default if first is None else first)
        while len(given) < definition.num_arguments:
            value, at = self.arguments.argument(text, at)
            given.append(value or "")

        def parameter(found: re.Match[str]) -> str:
            if found[1] is None:
                return "#"
            value = given[int(found[1]) - 1] if int(found[1]) <= len(given) else ""
            return _apart(definition.body[: found.start()], value)

        body = _PARAMETER.sub(parameter, definition.body)
        self._left -= len(body) + 1
        if self._left < 0:
            raise UnreadableError("broken_markup", "a command that is in itself")
        return body, at

    def expanded(self, formula: str, depth: int = 0) -> str:
        """A formula in which the document's own commands are replaced."""
        if depth > MAX_DEPTH:
            raise UnreadableError("broken_markup", "a command that is in itself")
        parts: list[str] = []
        at = 0
        while found := _COMMAND.search(formula, at):
            parts.append(formula[at : found.start()])
            at = found.end()
            if found[1] in self._known:
                body, at = self.call(found[1], formula, at)
                parts += [self.expanded(body, depth + 1)]
                parts.append(_apart(parts[-1], formula[at : at + 1])[:-1])
            else:
                parts.append(found[0])
        return "".join([*parts, formula[at:]])


def _apart(before: str, text: str) -> str:
    """A text behind another, with a blank if its letters would become part of a command's name."""
    return f" {text}" if text[:1].isalpha() and _ENDS_IN_COMMAND.search(before) else text
