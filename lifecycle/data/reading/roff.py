r"""The language under man pages: requests, conditions, macros, strings and escapes, as far as they decide what is read.

Fonts, sizes, distances and registers are dropped. `n` (a terminal) is true and `t` (a typesetter) false, so that a
page's own definitions choose plain text. groff(7), groff_char(7).
"""

import re
from collections import deque
from collections.abc import Callable, Iterator

from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.roff_characters import character

MAX_EXPANSION = 50  # lines and strings for each line of a page, or a macro or string of it is in itself
MAX_DEPTH = 50  # strings in each other
MAX_LINE = 100_000  # characters, with the lines that continue it
_SIMPLE = {
    "-": "-", "e": "\\", "E": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": "\t", "'": "'", "`": "`", ".": ".",
}  # fmt: skip
_STRINGS = {"lq": "“", "rq": "”", "R": "®", "Tm": "™", "S": "", "Aq": "'"}  # that man(7) has
_NAMED = r"(?:\((..)|\[([^\]]*)\]|(.))"  # \*x, \*(xx, \*[xxx]
_ESCAPE = re.compile(
    rf"\\(?:\*{_NAMED}"
    r"|(?:[fFgkmMVY]|n[+-]?)(?:\(..|\[[^\]]*\]|.)"
    r"|s(?:\([+-]?\d\d|[+-]?\(\d\d|\[[^\]]*\]|'[^']*'|[+-]?[1-3]\d|[+-]?\d)"
    r"|[hvwxXbDlLoRSZAB]'(?:[^'\\]|\\.)*'"
    r"|[CN]'([^']*)'"
    r"|\((..)|\[([^\]]*)\]|(.)|$)"
)
_COMMENT = re.compile(r'(?<!\\)((?:\\\\)*)\\["#].*')
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+)')
_CONTROL = re.compile(r"[.'][ \t]*((?:\\[^{}]|[^\s\\])*)[ \t]*(.*)", re.DOTALL)
_CONDITION = re.compile(r"\s*(!?)\s*(?:([ntoe])(?!\w)|(['\"])(.*?)\3(.*?)\3|((?:[^\s\\]|\\[^{])*))\s*(.*)", re.DOTALL)
_COMPARISON = re.compile(r"\(?(\d+)(?:(<=?|>=?|==?)(\d+))?\)?", re.ASCII)
_NUM_ARGUMENTS = re.compile(r"\\n(?:\(\.\$|\[\.\$\])")
_PARAMETER = re.compile(r"\\\$(?:(\d)|([*@])|\((\d\d))")


class Roff:
    """A page as it is run: yields what is to be set, `("", text)` for a line of text, and a macro with the rest of its
    line for what the page does not define itself. Raises `UnreadableError` for one that does not end."""

    def __init__(self, text: str) -> None:
        self._lines = deque(text.split("\n"))
        self._left = MAX_EXPANSION * (len(self._lines) + 100)
        self._depth = 0
        self._strings = dict(_STRINGS)
        self._macros: dict[str, list[str]] = {}
        self._otherwise: list[bool] = []  # whether the `.el` of each `.ie` is run

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while self._lines:
            line = self.next_line()
            control = _CONTROL.match(line)
            if control is None:
                if line or not self._was_comment:
                    yield "", line
            elif control[1] in self._macros:
                self._call(control[1], arguments(control[2]))
            elif request := _REQUESTS.get(control[1]):
                request(self, control[2])
            elif control[1]:
                yield control[1], control[2]

    @property
    def has_lines(self) -> bool:
        """Whether there is another line."""
        return bool(self._lines)

    def next_line(self) -> str:
        """The next line without its comment, with those that continue it."""
        self._expand()
        line = self._lines.popleft().replace("\\}", "")
        whole = line
        line = _COMMENT.sub(r"\1", line)
        self._was_comment = line != whole
        while self._lines and len(line) < MAX_LINE and (len(line) - len(line.rstrip("\\"))) % 2:
            line = line[:-1] + self._lines.popleft()
        return line

    def _expand(self, size: int = 0) -> None:
        self._left -= 1
        if self._left < 0 or self._depth > MAX_DEPTH or size > MAX_LINE:
            raise UnreadableError("broken_markup", "a macro or string that is in itself")

    def unescaped(self, text: str) -> str:
        """The characters of a text."""
        if "\\" not in text:
            return text
        self._depth += 1
        found = _ESCAPE.sub(self._character, text)
        self._depth -= 1
        return found

    def _character(self, found: re.Match[str]) -> str:
        two, long, one, number, special, bracketed, simple = found.groups()
        if name := two or long or one:
            text = self._strings.get(name, "")
            self._expand(len(text))
            return self.unescaped(text)
        if name := number or special or bracketed:
            return character(name)
        return _SIMPLE.get(simple or "", "")

    def _call(self, name: str, given: list[str]) -> None:
        def argument(found: re.Match[str]) -> str:
            if found[2]:
                return " ".join(given)
            number = int(found[1] or found[3])
            return name if number == 0 else given[number - 1] if number <= len(given) else ""

        for line in reversed(self._macros[name]):
            line = _NUM_ARGUMENTS.sub(str(len(given)), line.replace("\\\\", "\\"))
            line = _PARAMETER.sub(argument, line)
            self._expand(len(line))
            self._lines.appendleft(line)

    def _define(self, rest: str) -> None:
        name, end, *_ = [*rest.split(), "", ""]
        body: list[str] = []
        while self._lines and not re.match(rf"[.'][ \t]*{re.escape(end or '.')}\s*$", line := self._lines.popleft()):
            body.append(line)
        self._macros[name] = body

    def _extend(self, rest: str) -> None:
        before = self._macros.get(rest.strip(), [])
        self._define(rest)
        self._macros[rest.strip()] = before + self._macros.get(rest.strip(), [])

    def _alias(self, rest: str) -> None:
        new, old, *_ = [*rest.split(), "", ""]
        if old in self._macros:
            self._macros[new] = self._macros[old]

    def _ignore(self, rest: str) -> None:
        self._define(f"- {rest}")  # under a name that no page calls

    def _set_string(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        self._strings[name] = value.lstrip(" ").removeprefix('"')

    def _add_string(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        self._strings[name] = (self._strings.get(name, "") + value.lstrip(" ").removeprefix('"'))[:MAX_LINE]

    def _if(self, rest: str) -> None:
        self._run_if(*self._condition(rest))

    def _if_else(self, rest: str) -> None:
        is_true, body = self._condition(rest)
        self._otherwise.append(not is_true)
        self._run_if(is_true, body)

    def _else(self, rest: str) -> None:
        self._run_if(self._otherwise.pop() if self._otherwise else False, rest)

    def _condition(self, rest: str) -> tuple[bool, str]:
        found = _CONDITION.match(rest)
        assert found is not None
        negation, letter, quote, left, right, expression, body = found.groups()
        if letter:
            is_true = letter in "no"
        elif quote:
            is_true = self.unescaped(left) == self.unescaped(right)
        else:
            is_true = _is_true(expression)
        return is_true != bool(negation), body

    def _run_if(self, is_true: bool, body: str) -> None:
        if is_true:
            self._expand(len(body))  # of one line with many conditions each is read with all behind it
            self._lines.appendleft(body.lstrip().removeprefix("\\{").lstrip())
            return
        depth = body.count("\\{") - body.count("\\}")
        while depth > 0 and self._lines:
            line = self._lines.popleft()
            depth += line.count("\\{") - line.count("\\}")


_REQUESTS: dict[str, Callable[[Roff, str], None]] = {
    "de": Roff._define, "de1": Roff._define, "am": Roff._extend, "als": Roff._alias, "ig": Roff._ignore,
    "ds": Roff._set_string, "as": Roff._add_string, "if": Roff._if, "ie": Roff._if_else, "el": Roff._else,
}  # fmt: skip


def _is_true(expression: str) -> bool:
    """What a number or a comparison of two says. Of registers only that of groff is known: that it is groff."""
    if expression in ("\\n(.g", "\\n[.g]"):
        return True
    found = _COMPARISON.fullmatch(expression)
    if found is None:
        return False
    left, right = int(found[1]), int(found[3] or 0)
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}.get(
        found[2] or ">", left == right
    )


def arguments(rest: str) -> list[str]:
    """The arguments of a macro: quoted ones without their quotes."""
    found = (match.groups() for match in _ARGUMENT.finditer(rest))
    return [quoted.replace('""', '"') if plain is None else plain for quoted, plain in found]
