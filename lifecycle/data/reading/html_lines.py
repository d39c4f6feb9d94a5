"""The lines of a web page: tables, headings and code by their marks, and which lines are text.

A line of a page is text, or it is there to lead elsewhere, to sell or to comply. The signs: its words are those of
links (link density, Kohlschütter et al., Boilerplate Detection using Shallow Text Features, 2010), it is one of the
phrases that are on every page, it stands before or behind all text with links between (as in jusText, Pomikálek 2011),
or it heads only such lines. Lines of code are never looked at.
"""

import re

from lifecycle.data.reading.html_marks import (
    ARTICLE,
    ARTICLE_END,
    CELL,
    CODE,
    CODE_END,
    GONE,
    HEADING,
    LINK,
    LINK_END,
    ROW,
    TABLE_END,
    unmarked,
)  # fmt: skip
from lifecycle.data.reading.html_phrases import SHORT, is_phrase, legal_lines

MAX_CELL = 200  # characters of a cell of data; more is a column of a page that is laid out as a table
MAX_LINK = 300  # of a link over several lines; more is one whose end is missing
MIN_LINKED = 0.7  # of a line's letters: then it is one of links
LEAST_ARTICLE = 400  # characters: a shorter one is a teaser
NEAR = 200  # characters: a heading that is not so near to the article's begin is before it
LEAST_GUTTER, MOST_DIGITS = 3, 7  # numbers of lines that are no code, and digits of each
EDGE = 12  # lines at either end in which a legal phrase is looked for

_CODE = re.compile(f"{CODE}\n?([^{CODE}{CODE_END}]*){CODE_END}")
_CODE_PLACE = re.compile(f"{CODE}(\\d+){CODE_END}")
_LINES_OF_LINK = re.compile(
    f"{LINK}([^{LINK}{LINK_END}\n]{{0,{MAX_LINK}}}\n[^{LINK}{LINK_END}]{{0,{MAX_LINK}}}){LINK_END}"
)
_TO_HEADING = re.compile(rf"{HEADING}\s*")
_LINKED = re.compile(f"{LINK}[^{LINK_END}\n]*(?:{LINK_END}|$)")
_LIST_MARKS = " \t•|,;:·-\u2013—/0123456789."
_GOOD = re.compile(
    rf"[{CODE}{ROW}]|[ \t]*(?:•|\d+\.) .{{12,}}|[^{HEADING}]{{25,}}[.!?…:;。\uff01\uff1f।؟\"”»)]{LINK_END}?[ \t]*$|"
    r".*[\u3040-\u30ff\u3400-\u9fff]{12,}"
)
_BULLET = re.compile(rf"(• {LINK}?)[ \t]*\n\s*{HEADING}?")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*\n")


def main_lines(text: str) -> str:
    """The lines of a marked text that are text; all that are code."""
    code: list[str] = []
    text = _rows(_without_code(_article(text), code))
    if HEADING in text:
        text = _TO_HEADING.sub(f"\n\n{HEADING}", text)
    if LINK in text:
        text = _LINES_OF_LINK.sub(_each_line, _BULLET.sub(r"\1", text))
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line and ((len(line) <= SHORT and is_phrase(line)) or (LINK in line and _is_of_links(line))):
            lines[number] = GONE
    for number in legal_lines(lines, EDGE):
        lines[number] = GONE
    if GONE in lines:
        _remove_headings(lines)
        lines = _between_edges(lines)
    return _with_code(_plain("\n".join(line for line in lines if line != GONE)), code)


def all_lines(text: str) -> str:
    """All lines of a marked text."""
    code: list[str] = []
    text = _rows(_without_code(text, code))
    return _with_code(_plain(_TO_HEADING.sub("\n\n", text)), code)


def _article(text: str) -> str:
    """What is in the page's article, if it has one, with the heading before it."""
    begin, end = text.find(ARTICLE), text.rfind(ARTICLE_END)
    if begin < 0 or end - begin < LEAST_ARTICLE:
        return text
    inside = text[begin:end]
    heading = text.rfind(HEADING, 0, begin) if HEADING not in inside[:NEAR] else -1
    if heading < 0:
        return inside
    line = text[heading + 1 : begin].strip().partition("\n")[0]
    return f"{HEADING}{line}\n\n{inside}"


def _without_code(text: str, code: list[str]) -> str:
    """The text with a mark in the place of code, which is put into the list."""
    if CODE not in text:
        return text

    def keep(found: re.Match[str]) -> str:
        own = unmarked(found[1]).strip("\n")
        if _is_gutter(own):
            return "\n"
        code.append(own)
        return f"\n{CODE}{len(code) - 1}{CODE_END}\n" if code[-1].strip() else ""

    return _CODE.sub(keep, text)


def _is_gutter(code: str) -> bool:
    """Whether it is nothing but the numbers of lines that stand beside it, such as rustdoc's."""
    if not code.lstrip()[:1].isdecimal():
        return False
    numbers = code.split()
    if len(numbers) < LEAST_GUTTER or not all(len(n) <= MOST_DIGITS and n.isdecimal() for n in numbers):
        return False
    first = int(numbers[0])
    return all(int(number) == first + place for place, number in enumerate(numbers))


def _with_code(text: str, code: list[str]) -> str:
    """The text with code in its places, in which no mark is left."""
    if not code and CODE not in text and CODE_END not in text:
        return text
    return unmarked(_CODE_PLACE.sub(lambda found: code[int(found[1])], text))


def _rows(text: str) -> str:
    """The text with the rows of its tables on one line each, without empty lines before them."""
    before, *rows = text.split(ROW)
    parts = [before]
    for row in rows:
        content, end, behind = row.partition(TABLE_END)
        line = _row(content)
        if line.startswith(f"\n{ROW}"):
            parts[-1] = _to_last_line(parts[-1])
        parts.append(line + end + behind)
    return "".join(parts)


def _to_last_line(text: str) -> str:
    """The text without what follows its last line."""
    length = len(text.rstrip())
    end = text.find("\n", length)
    return text if end < 0 else text[:end]


def _row(content: str) -> str:
    cells = [" ".join(cell.split()) for cell in content.split(CELL)[1:]]
    if CODE in content or HEADING in content or max(map(len, cells), default=0) > MAX_CELL:
        return content.replace(CELL, "\n\n").replace("\t\t", "")
    row = " | ".join(cells).rstrip(" |")
    return f"\n{ROW}{row}\n" if row.strip(" |") else "\n"


def _each_line(found: re.Match[str]) -> str:
    """A link, whose lines become one each."""
    lines = found[1].replace(HEADING, "").split("\n")
    return "\n".join(f"{LINK}{line}{LINK_END}" if line.strip() else line for line in lines)


def _is_of_links(line: str) -> bool:
    if line[0] == HEADING:
        return False
    return len(_LINKED.sub("", line).strip(_LIST_MARKS)) < (1 - MIN_LINKED) * len(line)


def _remove_headings(lines: list[str]) -> None:
    """Removes headings of nothing but lines that are gone, and those that are links and have nothing below them."""
    below = ""
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        if not line.startswith(HEADING):
            below = below or line.strip()
            if below == GONE and line != GONE and line.strip():
                below = line
            continue
        if below == GONE or (line[1:2] == LINK and not below):
            lines[number] = GONE
        below = ""


def _between_edges(lines: list[str]) -> list[str]:
    """The lines without short ones before the first good one or heading, and behind the last good one, that what is
    gone parts from it."""
    begin = next((place for place, line in enumerate(lines) if line[:1] == HEADING or _GOOD.match(line)), 0)
    end = next((place for place in range(len(lines) - 1, -1, -1) if _GOOD.match(lines[place])), len(lines))
    behind = next((place for place in range(end, len(lines)) if lines[place] == GONE), len(lines))
    before = next((place for place in range(begin, -1, -1) if lines[place] == GONE), -1)
    return lines[before + 1 : behind]


def _plain(text: str) -> str:
    """A text without marks, but for those of code."""
    return _BLANK_LINES.sub("\n\n", unmarked(text, CODE + CODE_END)).strip("\n")
