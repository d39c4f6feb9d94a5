r"""Man pages to text, by the macros of man(7) and tbl(1).

Headings are lines by themselves, paragraphs one line each, what a tag explains is indented below it. The page's name
becomes its title. Fonts are dropped: they mark words that their places mark too.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from lifecycle.data.reading.mdoc_pages import parse_mdoc
from lifecycle.data.reading.page_text import PageText
from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.roff import Roff, arguments

_IS_MAN = re.compile(r"^[.'][ \t]*(?:TH|SH|Dd|Dt|so)\b", re.MULTILINE)
_IS_MDOC = re.compile(r"^\.[ \t]*Dd\b", re.MULTILINE)
_JOINED = re.compile(r"\\c\s*$")
_TAB = re.compile(r"\btab\s*\((.)\)")
_WORDS = ("B", "I", "SM", "SB", "R")  # macros whose arguments are text, with blanks between them
_PIECES = ("BI", "BR", "IB", "IR", "RB", "RI")  # and without


def parse_man(text: str) -> tuple[str, dict[str, Any]]:
    """The text of a man page and its title; raises `UnreadableError` for what is none."""
    text = text.replace("\r\n", "\n")
    if not _IS_MAN.search(text):
        raise UnreadableError("unknown_format", "named like a man page, and there is no troff in it")
    if _IS_MDOC.search(text):
        return parse_mdoc(text)
    page = _Page(text)
    page.run()
    if page.included and not page.text.is_begun:
        raise UnreadableError("no_text", f"a link to {page.included}")
    return page.text.all(), {"title": page.title} if page.title else {}


class _Page:
    """A page in man(7) while it is read."""

    def __init__(self, text: str) -> None:
        self.text, self.title, self.included = PageText(), "", ""
        self._roff = Roff(text)
        self._margin = 0  # of RS
        self._takes_next: Callable[[str], None] | None = None  # a tag or heading that is the next line
        self._link = ""

    def run(self) -> None:
        """Reads all of it."""
        for name, rest in self._roff:
            if not name:
                self._line(rest)
            elif name in _WORDS or name in _PIECES:
                if words := arguments(rest):
                    self._line(("" if name in _PIECES else " ").join(words))
            elif macro := _MACROS.get(name):
                macro(self, rest)

    def _line(self, line: str) -> None:
        is_joined = _JOINED.search(line) is not None
        text = self._roff.unescaped(line)
        if self._takes_next is not None and text.strip():
            take, self._takes_next = self._takes_next, None
            take(text)
        elif not line.strip() and self.text.is_filled:
            self.text.end_paragraph()
        else:
            self.text.add(text, is_joined)

    def _arguments(self, rest: str) -> list[str]:
        return [self._roff.unescaped(argument) for argument in arguments(rest)]

    def _name(self, rest: str) -> None:
        name, section, *_ = [*self._arguments(rest), "", ""]
        self.title = f"{name}({section})" if section else name

    def _heading(self, rest: str) -> None:
        self._margin = 0
        if words := self._arguments(rest):
            self.text.heading(" ".join(words))
        else:
            self._takes_next = self.text.heading

    def _paragraph(self, rest: str) -> None:
        self.text.end_paragraph()
        self.text.indent = self._margin

    def _tagged(self, rest: str) -> None:
        self.text.end_paragraph()
        self._next_tag(rest)

    def _next_tag(self, rest: str) -> None:
        self.text.indent = self._margin + 1
        self._takes_next = self.text.tag

    def _item(self, rest: str) -> None:
        self.text.end_paragraph()
        self.text.indent = self._margin + 1
        if words := self._arguments(rest):
            self.text.tag(words[0])

    def _indent(self, rest: str) -> None:
        self.text.end_line()
        self._margin += 1
        self.text.indent = self._margin

    def _outdent(self, rest: str) -> None:
        self.text.end_line()
        self._margin = max(0, self._margin - 1)
        self.text.indent = self._margin

    def _keep_lines(self, rest: str) -> None:
        self.text.end_line()
        self.text.is_filled = False

    def _fill_lines(self, rest: str) -> None:
        self.text.end_line()
        self.text.is_filled = True

    def _break(self, rest: str) -> None:
        self.text.end_line()

    def _begin_link(self, rest: str) -> None:
        self._link = "".join(self._arguments(rest)[:1])

    def _end_link(self, rest: str) -> None:
        self.text.add(f"<{self._link}>{''.join(self._arguments(rest)[:1])}")

    def _synopsis(self, rest: str) -> None:
        self.text.end_line()
        self.text.add(" ".join(self._arguments(rest)))

    def _option(self, rest: str) -> None:
        self.text.add(f"[{' '.join(self._arguments(rest))}]")

    def _include(self, rest: str) -> None:
        self.included = rest.strip()

    def _table(self, rest: str) -> None:
        self.text.end_paragraph()
        was_filled, self.text.is_filled = self.text.is_filled, False
        for row in _rows(self._until("TE")):
            self.text.add("\t".join(self._roff.unescaped(cell).strip() for cell in row))
        self.text.is_filled = was_filled
        self.text.end_paragraph()

    def _formula(self, rest: str) -> None:
        self.text.add(" ".join(line for line in self._until("EN") if not line.startswith("delim")))

    def _until(self, end: str) -> Iterator[str]:
        while self._roff.has_lines and not (line := self._roff.next_line()).startswith(f".{end}"):
            yield line


_MACROS: dict[str, Callable[[_Page, str], None]] = {
    "TH": _Page._name, "SH": _Page._heading, "SS": _Page._heading, "PP": _Page._paragraph, "LP": _Page._paragraph,
    "P": _Page._paragraph, "HP": _Page._paragraph, "TP": _Page._tagged, "TQ": _Page._next_tag, "IP": _Page._item,
    "RS": _Page._indent, "RE": _Page._outdent, "nf": _Page._keep_lines, "EX": _Page._keep_lines,
    "fi": _Page._fill_lines, "EE": _Page._fill_lines, "br": _Page._break, "ti": _Page._break, "sp": _Page._paragraph,
    "UR": _Page._begin_link, "UE": _Page._end_link, "MT": _Page._begin_link, "ME": _Page._end_link,
    "SY": _Page._synopsis, "OP": _Page._option, "so": _Page._include, "TS": _Page._table, "EQ": _Page._formula,
}  # fmt: skip


def _rows(lines: Iterator[str]) -> Iterator[list[str]]:
    """The rows of a table in tbl(1): behind its options and formats, cells with a tab or another sign between them. A
    cell may be a block of lines from `T{` to `T}`."""
    tab, is_format = "\t", True
    row: list[str] = []  # up to a cell that is open
    for line in lines:
        if is_format:
            found = _TAB.search(line)
            tab = found[1] if found else tab
            is_format = not line.rstrip().endswith(".")
        elif line.startswith(".T&"):
            is_format = True
        elif row and not line.startswith("T}"):
            row[-1] += f" {_words_of(line)}"
        elif row or not line.startswith("."):
            row += line.removeprefix("T}").split(tab)[bool(row) :]
            if row[-1].strip() == "T{":
                row[-1] = ""
            else:
                if any(cell.strip("_= ") for cell in row):
                    yield row
                row = []


def _words_of(line: str) -> str:
    """The text of a line that may be a macro's."""
    name, _, rest = line.removeprefix(".").partition(" ")
    if not line.startswith("."):
        return line
    return (" " * (name in _WORDS)).join(arguments(rest)) if name in (*_WORDS, *_PIECES) else ""
