"""The text of a LaTeX document while it is read: tokens, arguments, and what commands are replaced by."""

import re

from lifecycle.data.reading.latex_macros import Arguments
from lifecycle.data.reading.raw import UnreadableError

MAX_DEPTH = 100  # texts in each other
_TOKEN = re.compile(
    r"\\(?P<command>[A-Za-z@]+\*?|.|$)|(?P<comment>%[^\n]*(?:\n[ \t]*(?!\n))?)|(?P<maths>\$\$?)"
    r"|(?P<gap>[ \t]*\n[ \t]*\n\s*)|(?P<mark>[{}&~])|(?P<text>[^\\%${}&~\n]+|\n)",
    re.DOTALL,
)


class LatexInput:
    """Texts in each other, of which the innermost is read first."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._stack: list[tuple[str, int]] = []
        self._missing: set[tuple[int, str]] = set()  # what was looked for in vain, and in which text

    @property
    def here(self) -> tuple[str, int]:
        """The innermost text, and where we are in it."""
        return self._stack[-1]

    def push(self, text: str) -> None:
        """Lets a text be read next."""
        if len(self._stack) > MAX_DEPTH:
            raise UnreadableError("broken_markup", "a command that is in itself")
        self._stack.append((text, 0))

    def next(self) -> re.Match[str] | None:
        """The next token: a command, comment, mark of a formula, gap between paragraphs, mark or text."""
        while self._stack:
            text, at = self._stack.pop()
            if found := _TOKEN.match(text, at):
                self._stack.append((text, found.end()))
                return found
        return None

    def move(self, at: int) -> None:
        """Goes to a place in the innermost text."""
        self._stack[-1] = (self._stack[-1][0], at)

    def skip_spaces(self, also: str = " ") -> None:
        """Passes blanks."""
        text, at = self.here
        while text.startswith((" ", "\t", also), at):
            at += 1
        self.move(at)

    def skip(self, num_groups: int) -> bool:
        """Passes arguments: those in brackets, and so many in braces. Whether there were any."""
        text, begin = self.here
        at = begin
        while text.startswith("[", at) or (num_groups and text[at : at + 2].lstrip().startswith("[")):
            value, end = self._arguments.optional(text, at)
            if value is None:
                break
            at = end
        for _ in range(num_groups):
            if not text[at : at + 2].lstrip().startswith(("{", "[")):
                break
            _, at = self._arguments.optional(text, at)
            _, at = self._arguments.argument(text, at)
        self.move(at)
        return at > begin

    def argument(self) -> str:
        """The argument that comes now; "" if there is none."""
        text, at = self.here
        value, at = self._arguments.argument(text, at)
        self.move(at)
        return value or ""

    def optional(self) -> str | None:
        """The argument in brackets that comes now."""
        text, at = self.here
        value, at = self._arguments.optional(text, at)
        self.move(at)
        return value

    def find(self, mark: str) -> int:
        """Where a mark comes next, or -1; one that is missing is looked for once."""
        text, at = self.here
        if (id(text), mark) in self._missing:
            return -1
        place = text.find(mark, at)
        if place < 0:
            self._missing.add((id(text), mark))
        return place
