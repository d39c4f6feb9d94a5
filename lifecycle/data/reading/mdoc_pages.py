"""Man pages in mdoc(7), whose macros name what words are: options, arguments, files. A macro's arguments may be macros
themselves; signs such as commas among them stay outside."""

# ruff: noqa: RUF001

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lifecycle.data.reading.page_text import PageText
from lifecycle.data.reading.roff import Roff, arguments

CLOSING = (".", ",", ":", ";", ")", "]", "?", "!")
OPENING = ("(", "[")
ENCLOSED = {
    "Op": "[]", "Aq": "<>", "Bq": "[]", "Brq": "{}", "Pq": "()", "Dq": "“”", "Sq": "‘’", "Qq": '""', "Ql": "‘’",
}  # fmt: skip
OPENED = {"Oo": "[", "Ao": "<", "Bo": "[", "Bro": "{", "Po": "(", "Do": "“", "So": "‘", "Qo": '"'}
CLOSED = {"Oc": "]", "Ac": ">", "Bc": "]", "Brc": "}", "Pc": ")", "Dc": "”", "Sc": "’", "Qc": '"'}
SILENT = ("Xo", "Xc", "Eo", "Ec")
SYSTEMS = {"Ux": "UNIX", "Fx": "FreeBSD", "Nx": "NetBSD", "Ox": "OpenBSD", "Dx": "DragonFly", "Bsx": "BSD/OS"}
STANDARDS = {
    "ansiC": "ANSI X3.159-1989 (“ANSI C89”)", "isoC": "ISO/IEC 9899:1990 (“ISO C90”)",
    "isoC-90": "ISO/IEC 9899:1990 (“ISO C90”)", "isoC-99": "ISO/IEC 9899:1999 (“ISO C99”)",
    "isoC-2011": "ISO/IEC 9899:2011 (“ISO C11”)", "susv1": "Version 1 of the Single UNIX Specification (“SUSv1”)",
    "susv2": "Version 2 of the Single UNIX Specification (“SUSv2”)",
    "susv3": "Version 3 of the Single UNIX Specification (“SUSv3”)",
}  # fmt: skip
DEFAULTS = {"Ar": "file ...", "Pa": "~", "Mt": "~", "Bx": "BSD", "At": "AT&T UNIX"}  # of a macro without an argument
PLAIN = (
    "Ar", "Cm", "Ic", "Em", "Sy", "Li", "Pa", "Ev", "Va", "Vt", "Dv", "Er", "Fa", "Ft", "No", "Tn", "Ad", "Ms", "Sx",
    "Cd", "Mt", "Fd", "Fl", "Nm", "Ns", "Ap",
)  # fmt: skip
# Macros that say more than their arguments do.
FORMS: dict[str, Callable[[list[str]], str]] = {
    "Xr": lambda own: f"{own[0]}({own[1]})" if own[1:] else own[0],
    "Fn": lambda own: f"{own[0]}({', '.join(own[1:])})",
    "In": lambda own: f"<{own[0]}>",
    "Lk": lambda own: f"{' '.join(own[1:])}: {own[0]}" if own[1:] else own[0],
    "Bx": lambda own: f"{own[0]}BSD" + "".join(f"-{word.title()}" for word in own[1:]),
    "Lb": lambda own: f"library “{' '.join(own)}”",
    "At": lambda own: f"Version {own[0][1:]} AT&T UNIX" if own[0].startswith("v") else f"AT&T System {own[0]} UNIX",
    "St": lambda own: _standard(own[0].removeprefix("-")),
    "An": lambda own: " ".join(word for word in own if word not in ("-split", "-nosplit")),
    "Pf": lambda own: " ".join(own),
    "Ta": lambda own: "\t" + " ".join(own),
}
CALLABLE = {*ENCLOSED, *OPENED, *CLOSED, *SILENT, *SYSTEMS, *PLAIN, *FORMS}
_BULLETS = ("-bullet", "-dash", "-hyphen")
_FLUSH = ("-item", "-column")
_KINDS = (*_BULLETS, *_FLUSH, "-enum", "-tag", "-hang", "-ohang", "-inset", "-diag")


def parse_mdoc(text: str) -> tuple[str, dict[str, Any]]:
    """The text of a page and its title."""
    page = _Page(text)
    page.run()
    return page.text.all(), {"title": page.title} if page.title else {}


def _standard(name: str) -> str:
    """A standard by the name that mdoc has for it."""
    posix, _, year = name.partition("-")
    if posix == "p1003.1":
        return "IEEE Std 1003.1" + (f"-{'' if len(year) == 4 else '19'}{year}" if year else "") + " (“POSIX.1”)"
    return STANDARDS.get(name, f"standard {name}")


@dataclass
class _List:
    kind: str
    is_compact: bool
    number: int = 0  # of the item


class _Words:
    """The words of a line while they are put together, with blanks between them or not."""

    def __init__(self, is_tight: bool = False) -> None:
        self.text = ""
        self.begins_joined = self.ends_joined = False
        self._is_tight = is_tight

    def add(self, word: str, joins_before: bool = False, joins_behind: bool = False) -> None:
        """Adds a word; nothing is between it and the one before if either says so."""
        if not self.text:
            self.begins_joined = joins_before
        elif not (self.ends_joined or joins_before or self._is_tight):
            self.text += " "
        self.text += word
        self.ends_joined = joins_behind


class _Page:
    """A page in mdoc(7) while it is read."""

    def __init__(self, text: str) -> None:
        self.text, self.title = PageText(), ""
        self._roff = Roff(text)
        self._name = self._section = ""
        self._lists: list[_List] = []
        self._call: list[str] | None = None  # the function that Fo has begun, and its arguments
        self._reference: list[str] | None = None  # what is in the reference that Rs has begun
        self._head: str | None = None  # the tag of an item that goes on
        self._is_tight = self._is_tight_line = (
            False  # no blanks between words, and between this line and the one before
        )
        self._displays: list[tuple[bool, int]] = []  # whether lines were filled before each, and their indentation

    def run(self) -> None:
        """Reads all of it."""
        for name, rest in self._roff:
            if not name:
                self._line(rest)
            elif block := _BLOCKS.get(name):
                block(self, rest)
            elif name.startswith("%") and self._reference is not None:
                self._reference.append(" ".join(self._arguments(rest)))
            elif name in CALLABLE:
                self._macro([name, *arguments(rest)])

    def _arguments(self, rest: str) -> list[str]:
        return [self._roff.unescaped(argument) for argument in arguments(rest)]

    def _line(self, line: str) -> None:
        if not line.strip() and self.text.is_filled:
            self.text.end_paragraph()
        else:
            self.text.add(self._roff.unescaped(line), line.endswith("\\c"))

    def _macro(self, tokens: list[str]) -> None:
        if self._call is not None and tokens[0] == "Fa":
            self._call += map(self._roff.unescaped, tokens[1:])
            return
        is_synopsis = self._section == "SYNOPSIS"
        if is_synopsis and tokens[0] in ("Nm", "Fd", "In", "Fn", "Ft", "Vt", "Cd"):
            self.text.end_line()
        words = self._inline(tokens)
        if self._head is not None:
            self._add_to_head(words, tokens)
        elif words.text:
            if words.begins_joined or self._is_tight_line:
                self.text.join()
            self.text.add(words.text, words.ends_joined)
        self._is_tight_line = self._is_tight
        if is_synopsis and tokens[0] == "Fn":
            self.text.end_line()

    def _inline(self, tokens: list[str]) -> _Words:
        """What the macros in a line say. A macro that encloses goes to the end of the line, without the signs there."""
        words, ends = _Words(self._is_tight), len(tokens)
        while ends > 1 and tokens[ends - 1] in CLOSING:
            ends -= 1
        closers: list[str] = []
        place = 0
        while place < ends:
            place = self._token(tokens, place, ends, words, closers)
        for closer in reversed(closers):
            words.add(closer, joins_before=True)
        for sign in tokens[ends:]:
            words.add(sign, joins_before=True)
        return words

    def _token(self, tokens: list[str], place: int, ends: int, words: _Words, closers: list[str]) -> int:
        """Says one macro with its arguments; returns the place behind them."""
        name, behind = tokens[place], place + 1
        if name in ENCLOSED:
            words.add(ENCLOSED[name][0], joins_behind=True)
            closers.append(ENCLOSED[name][1])
        elif name in SILENT:
            pass
        elif name in OPENED:
            words.add(OPENED[name], joins_behind=True)
        elif name in CLOSED:
            words.add(CLOSED[name], joins_before=True)
        elif name in ("Ns", "Ap"):
            words.add("'" if name == "Ap" else "", joins_before=True, joins_behind=True)
        elif name not in CALLABLE:
            self._word(name, words)
        else:
            while behind < ends and tokens[behind] not in CALLABLE:
                behind += 1
            self._say(name, tokens[place + 1 : behind], words, behind < ends)
        return behind

    def _word(self, raw: str, words: _Words, prefix: str = "") -> None:
        if raw in CLOSING:
            words.add(raw, joins_before=True)
        elif raw in OPENING:
            words.add(raw, joins_behind=True)
        else:
            words.add(prefix * (raw != "|") + self._roff.unescaped(raw))

    def _say(self, name: str, given: list[str], words: _Words, goes_on: bool) -> None:
        """A macro that is about its arguments, up to the next macro."""
        own = [word for word in given if word not in CLOSING + OPENING]
        if name == "Nm" and not own:
            words.add(self._name)
        elif name == "Nm" and not self._name:
            self._name = self._roff.unescaped(own[0])
        elif name == "Fl" and not own:
            words.add("-", joins_behind=goes_on)
        elif name in SYSTEMS:
            words.add(" ".join([SYSTEMS[name], *map(self._roff.unescaped, own)]))
            given = [word for word in given if word not in own]
        elif form := FORMS.get(name):
            if said := form(list(map(self._roff.unescaped, own))) if own else DEFAULTS.get(name):
                words.add(
                    "#include " * (name == "In" and self._section == "SYNOPSIS") + said, joins_behind=name == "Pf"
                )
            given = [word for word in given if word not in own]
        elif not own and DEFAULTS.get(name):
            words.add(DEFAULTS[name])
        for word in given:
            self._word(word, words, "-" if name == "Fl" else "")

    def _begin(self, rest: str) -> None:
        name, section, *_ = [*self._arguments(rest), "", ""]
        self.title = f"{name}({section})" if section else name

    def _heading(self, rest: str) -> None:
        heading = self._inline(["No", *arguments(rest)]).text
        self._lists.clear()
        self._section = heading
        self.text.heading(heading)

    def _paragraph(self, rest: str) -> None:
        self.text.end_paragraph()

    def _break(self, rest: str) -> None:
        self.text.end_line()

    def _describe(self, rest: str) -> None:
        self.text.add(f"— {self._inline(['No', *arguments(rest)]).text}")

    def _begin_list(self, rest: str) -> None:
        kind = next((word for word in arguments(rest) if word in _KINDS), "-item")
        if "-compact" not in rest:
            self.text.end_paragraph()
        self.text.end_line()
        self._lists.append(_List(kind, "-compact" in rest))
        self.text.indent += kind not in _FLUSH

    def _end_list(self, rest: str) -> None:
        self.text.end_line()
        if self._lists:
            self.text.indent -= self._lists.pop().kind not in _FLUSH

    def _item(self, rest: str) -> None:
        if not self._lists:
            return
        own = self._lists[-1]
        self.text.end_line()
        if not own.is_compact:
            self.text.end_paragraph()
        own.number += 1
        tokens = arguments(rest)
        words = self._inline(["No", *tokens]).text
        if "Xo" in tokens and "Xc" not in tokens:
            self._head = words
        elif own.kind in _BULLETS:
            self.text.tag("•")
        elif own.kind == "-enum":
            self.text.tag(f"{own.number}.")
        elif own.kind in _FLUSH:
            self.text.add(words)
        else:
            self.text.tag(words)

    def _add_to_head(self, words: _Words, tokens: list[str]) -> None:
        assert self._head is not None
        self._head += words.text if words.begins_joined or self._is_tight_line or not words.text else f" {words.text}"
        if "Xc" in tokens:
            self.text.tag(self._head)
            self._head = None

    def _space(self, rest: str) -> None:
        wanted, *signs = [*self._arguments(rest), ""][:2]
        self._is_tight = wanted == "off" or (not wanted and not self._is_tight)
        self._is_tight_line = False
        if any(signs):
            self.text.join()
            self.text.add("".join(signs))

    def _begin_display(self, rest: str) -> None:
        self.text.end_paragraph()
        self._displays.append((self.text.is_filled, self.text.indent))
        self.text.indent += "-offset" in rest
        self.text.is_filled = "-literal" not in rest and "-unfilled" not in rest

    def _end_display(self, rest: str) -> None:
        self.text.end_line()
        if self._displays:
            self.text.is_filled, self.text.indent = self._displays.pop()

    def _display_line(self, rest: str) -> None:
        self.text.end_line()
        self.text.indent += 1
        self.text.add(self._inline(["No", *arguments(rest)]).text)
        self.text.end_line()
        self.text.indent -= 1

    def _begin_call(self, rest: str) -> None:
        self._call = self._arguments(rest)[:1]

    def _end_call(self, rest: str) -> None:
        if self._call:
            self.text.add(FORMS["Fn"](self._call) + "".join(self._arguments(rest)))
        self._call = None

    def _begin_reference(self, rest: str) -> None:
        self._reference = []

    def _end_reference(self, rest: str) -> None:
        if self._reference:
            self.text.add(f"{', '.join(self._reference)}.")
        self._reference = None

    def _exits(self, rest: str) -> None:
        names = [word for word in self._arguments(rest) if word != "-std"] or [self._name]
        verb = "utility exits" if len(names) == 1 else "utilities exit"
        self.text.add(f"The {', '.join(names)} {verb} 0 on success, and >0 if an error occurs.")

    def _returns(self, rest: str) -> None:
        names = [f"{word}()" for word in self._arguments(rest) if word != "-std"] or [f"{self._name}()"]
        verb = "function returns" if len(names) == 1 else "functions return"
        self.text.add(
            f"The {', '.join(names)} {verb} the value 0 if successful; otherwise the value -1 is returned and the "
            "global variable errno is set to indicate the error."
        )


_BLOCKS: dict[str, Callable[[_Page, str], None]] = {
    "Dt": _Page._begin, "Sh": _Page._heading, "Ss": _Page._heading, "Pp": _Page._paragraph, "Lp": _Page._paragraph,
    "Nd": _Page._describe, "Bl": _Page._begin_list, "It": _Page._item, "El": _Page._end_list,
    "Bd": _Page._begin_display, "Ed": _Page._end_display, "D1": _Page._display_line, "Dl": _Page._display_line,
    "Fo": _Page._begin_call, "Fc": _Page._end_call, "Rs": _Page._begin_reference, "Re": _Page._end_reference,
    "Ex": _Page._exits, "Rv": _Page._returns, "br": _Page._break, "sp": _Page._paragraph,
    "Sm": _Page._space,
}  # fmt: skip
