r"""LaTeX to text: prose without its commands, formulas as they are written, code and tables line by line.

The commands that a document defines are replaced in text and formulas, so that a formula can be read by itself. What a
command of no known meaning has in braces is text. References and citations stay as `[name]`. Nothing is run, and no
other file is read. The commands are those of "LaTeX: A Document Preparation System" (Lamport) and common packages.
"""

# ruff: noqa: RUF001

import re
from collections.abc import Callable
from typing import Any

from lifecycle.data.reading.latex_commands import (
    ACCENTS,
    CHARACTERS,
    CODE,
    ENVIRONMENT_ARGUMENTS,
    HEADINGS,
    LISTS,
    MATHS,
    REFERENCES,
    SKIPPED,
    STATEMENTS,
    TABLES,
    UNSEEN,
    accented,
)
from lifecycle.data.reading.latex_input import LatexInput
from lifecycle.data.reading.latex_macros import DEFINITIONS, MAX_ARGUMENT, Macros
from lifecycle.data.reading.latex_text import LatexText

MAX_GROWTH = 20  # times that a document may grow by the commands that it defines
_DEFINITION = re.compile(rf"(?<!\\)%[^\n]*|\\({'|'.join(DEFINITIONS)}|title|newtheorem)(?![A-Za-z@])")
_INLINE = re.compile(r"((?:\\.|[^$\\\n]|\n(?![ \t]*\n))+)\$", re.DOTALL)
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*")
_NO_FORMULA = re.compile(r"\\(?:label|index)\s*\{[^{}]*\}|\\(?:nonumber|notag)\b")
_IF = re.compile(r"\\(if[A-Za-z@]*|fi)(?![A-Za-z@])")
_LIGATURES = (("---", "—"), ("--", "–"), ("``", "“"), ("''", "”"))


def parse_latex(text: str) -> tuple[str, dict[str, Any]]:
    """The text of a document, or of a part of one, and its title; raises `UnreadableError` for one without an end."""
    text = text.replace("\r\n", "\n")
    macros = Macros(MAX_GROWTH * len(text) + 100_000)
    preamble, begin, body = text.partition("\\begin{document}")
    if not begin:
        preamble, body = "", text
    document = _Document(macros)
    title = document.read_preamble(preamble)
    document.run(body.partition("\\end{document}")[0])
    title = title or document.title
    return document.all(), {"title": title} if title else {}


class _Document:
    """A document while it is read."""

    def __init__(self, macros: Macros) -> None:
        self.title = ""
        self._macros, self._arguments = macros, macros.arguments
        self._input = LatexInput(macros.arguments)
        self._statements: dict[str, str] = {name: name.capitalize() for name in STATEMENTS}
        self._groups: list[Callable[[], None] | None] = []  # what the end of each open group does
        self._behind_group: Callable[[], None] | None = None  # and what the end of the next one will do
        self._environments: list[str] = []
        self._text = LatexText()

    def read_preamble(self, text: str) -> str:
        """Takes the definitions before a document; returns its title."""
        at, title = 0, ""
        while found := _DEFINITION.search(text, at):
            at = found.end()
            if found[1] == "title":
                title = self._title(text, at)
            elif found[1] == "newtheorem":
                at = self._define_statement(text, at)
            elif found[1]:
                at = self._macros.define(found[1], text, at)
        return title

    def run(self, text: str) -> None:
        """Reads a text."""
        self._input.push(text)
        while found := self._input.next():
            self._token(found)

    def all(self) -> str:
        """The text."""
        return self._text.all()

    def _token(self, found: re.Match[str]) -> None:
        kind, value = found.lastgroup, found[found.lastgroup or 0]
        if kind == "command":
            self._command(value.removesuffix("*") if len(value) > 1 else value)
        elif kind == "maths":
            self._formula(value)
        elif kind == "gap":
            self._text.end_paragraph()
        elif kind == "mark":
            self._mark(value)
        elif kind == "text":
            if value.strip():
                self._behind_group = None  # a heading without braces
            self._text.add(_typeset(value))

    def _mark(self, value: str) -> None:
        if value == "{":
            self._groups.append(self._behind_group)
            self._behind_group = None
        elif value == "}":
            if self._groups and (action := self._groups.pop()) is not None:
                action()
        elif value == "~":
            self._text.add(" ")
        else:
            self._text.add("\t" if self._environments and self._environments[-1] in TABLES else "&")

    def _command(self, name: str) -> None:
        text, at = self._input.here
        if name in self._macros:
            body, at = self._macros.call(name, text, at)
            self._input.move(at)
            self._input.push(body)
        elif action := _ACTIONS.get(name):
            action(self, name)
        elif name in ACCENTS and not (name.isalpha() and text[at : at + 1].isalpha()):
            letter, at = self._arguments.argument(text, at)
            self._text.add(accented((letter or "").removeprefix("\\"), name))
            self._input.move(at)
        elif name in CHARACTERS:
            self._text.add(CHARACTERS[name])
            if name.isalpha() and len(CHARACTERS[name]) == 1 and CHARACTERS[name].isalpha():
                self._input.skip_spaces()
        else:
            had_arguments = self._input.skip(SKIPPED.get(name, 3 if name.startswith("index") else 0))
            if name.isalpha() and not had_arguments:
                self._input.skip_spaces()

    def _break(self, name: str) -> None:
        text, at = self._input.here
        self._input.move(at + text.startswith("*", at))
        self._input.optional()
        self._text.add("\n")

    def _end_paragraph(self, name: str) -> None:
        self._text.end_paragraph()

    def _heading(self, name: str) -> None:
        self._input.optional()
        self._text.end_paragraph()
        self._behind_group = self._text.end_paragraph

    def _footnote(self, name: str) -> None:
        self._input.optional()
        self._text.add(" (")
        self._behind_group = self._close_footnote

    def _close_footnote(self) -> None:
        self._text.add(")")

    def _reference(self, name: str) -> None:
        self._input.optional()
        self._input.optional()
        self._text.add(f"[{' '.join(self._input.argument().split())}]")

    def _address(self, name: str) -> None:
        self._text.add(self._input.argument())

    def _verbatim_word(self, name: str) -> None:
        self._input.optional()
        if name == "mintinline":
            self._input.argument()
        text, at = self._input.here
        sign = text[at : at + 1]
        end = self._arguments.in_braces(text, at) - 1 if sign == "{" else text.find(sign, at + 1) if sign else -1
        if end > 0 and "\n" not in text[at:end]:
            self._text.add(text[at + 1 : end])
            self._input.move(end + 1)

    def _define(self, name: str) -> None:
        text, at = self._input.here
        self._input.move(self._macros.define(name, text, at))

    def _define_theorem(self, name: str) -> None:
        text, at = self._input.here
        self._input.move(self._define_statement(text, at))

    def _define_statement(self, text: str, at: int) -> int:
        at += text.startswith("*", at)
        name, at = self._arguments.argument(text, at)
        _, at = self._arguments.optional(text, at)
        title, at = self._arguments.argument(text, at)
        _, at = self._arguments.optional(text, at)
        if name and title:
            self._statements[name] = title
        return at

    def _title(self, text: str, at: int) -> str:
        _, at = self._arguments.optional(text, at)
        title, _ = self._arguments.argument(text, at)
        document = _Document(self._macros)
        document.run(title or "")
        return " ".join(document.all().split())

    def _take_title(self, name: str) -> None:
        self.title = self.title or self._title(*self._input.here)
        self._input.skip(1)

    def _skip_false(self, name: str) -> None:
        """Passes what is between `\\iffalse` and its `\\fi`."""
        text, at = self._input.here
        depth = 1
        for found in _IF.finditer(text, at, at + MAX_ARGUMENT):
            depth += -1 if found[1] == "fi" else 1
            if not depth:
                self._input.move(found.end())
                return
        self._arguments.miss()

    def _formula(self, mark: str) -> None:
        """A formula between dollar signs; a sign without another in its paragraph is an amount of money."""
        text, at = self._input.here
        if mark == "$$":
            end = self._input.find("$$")
            if end >= 0:
                self._input.move(end + 2)
                self._display(f"$${text[at:end].strip()}$$")
        elif found := _INLINE.match(text, at):
            self._input.move(found.end())
            self._text.add(f"${self._maths(found[1])}$")
        else:
            self._text.add("$")

    def _bracketed_formula(self, name: str) -> None:
        text, at = self._input.here
        end = self._input.find("\\)" if name == "(" else "\\]")
        if end < 0:
            return
        self._input.move(end + 2)
        if name == "(":
            self._text.add(f"${self._maths(text[at:end])}$")
        else:
            self._display(f"\\[{text[at:end].strip()}\\]")

    def _ensured_formula(self, name: str) -> None:
        self._text.add(f"${self._maths(self._input.argument())}$")

    def _maths(self, formula: str) -> str:
        formula = _NO_FORMULA.sub("", _COMMENT.sub(r"\1", formula))
        return " ".join(self._macros.expanded(formula).split())

    def _display(self, formula: str) -> None:
        """A formula by itself."""
        formula = self._macros.expanded(_NO_FORMULA.sub("", _COMMENT.sub(r"\1", formula)))
        self._text.block("\n".join(line.strip() for line in formula.split("\n") if line.strip()))

    def _begin(self, name: str) -> None:
        full = self._input.argument()
        name = full.rstrip("*")
        if name in (*MATHS, *CODE, *UNSEEN):
            self._raw_environment(full, name)
            return
        self._text.end_paragraph()
        self._environments.append(name)
        self._input.skip_spaces("\n")
        note = self._input.optional()
        if name in self._statements:
            self._text.add(self._statements[name])
            self._input.push(f" ({note}). " if note else ". ")
        elif name in LISTS:
            self._text.begin_list()
        for _ in range(ENVIRONMENT_ARGUMENTS.get(name, 0)):
            self._input.optional()
            self._input.argument()

    def _raw_environment(self, full: str, name: str) -> None:
        """An environment whose content is no prose: a formula, code, or nothing to be read."""
        text, at = self._input.here
        end_mark = f"\\end{{{full}}}"
        end = self._input.find(end_mark)
        if end < 0:
            return
        self._input.move(end + len(end_mark))
        if name in MATHS:
            self._display(f"\\begin{{{full}}}{text[at:end]}{end_mark}")
        elif name in CODE:
            _, at = self._arguments.optional(text, at)
            if name == "minted":
                _, at = self._arguments.argument(text, at)
            self._text.block(text[at:end].strip("\n"))

    def _end(self, name: str) -> None:
        name = self._input.argument().rstrip("*")
        self._text.end_paragraph()
        if name in LISTS:
            self._text.end_list()
        if name in self._environments:
            while self._environments.pop() != name:
                pass

    def _item(self, name: str) -> None:
        label = self._input.optional()
        kind = next((name for name in reversed(self._environments) if name in LISTS), "")
        self._text.begin_item("enum" in kind, label is not None)
        if label is not None:
            self._input.push(f"{label} ")


_ACTIONS: dict[str, Callable[[_Document, str], None]] = {
    "begin": _Document._begin, "end": _Document._end, "item": _Document._item, "\\": _Document._break,
    "newline": _Document._break, "tabularnewline": _Document._break, "par": _Document._end_paragraph,
    "(": _Document._bracketed_formula, "[": _Document._bracketed_formula, "ensuremath": _Document._ensured_formula,
    "verb": _Document._verbatim_word, "lstinline": _Document._verbatim_word, "mintinline": _Document._verbatim_word,
    "url": _Document._address, "nolinkurl": _Document._address, "path": _Document._address,
    "footnote": _Document._footnote, "footnotetext": _Document._footnote, "caption": _Document._heading,
    "captionof": _Document._heading, "iffalse": _Document._skip_false, "newtheorem": _Document._define_theorem,
    "title": _Document._take_title,
    **dict.fromkeys(HEADINGS, _Document._heading), **dict.fromkeys(REFERENCES, _Document._reference),
    **dict.fromkeys(DEFINITIONS, _Document._define),
}  # fmt: skip


def _typeset(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ")
    for written, sign in _LIGATURES:
        text = text.replace(written, sign)
    return text.replace("`", "‘")
