"""PDF files to text: pages joined, words mended that lines cut, running heads and page numbers left out.

PDFium (extra `pdf`) finds the characters and lines of each page, in a process of its own (`pdf_process.py`). A PDF has
no paragraphs: a line that is as long as its page's others goes on in the next one. A scanned page has no text, and a
file of only such pages is counted as `no_text`.
"""

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lifecycle.data.reading import pdf_process
from lifecycle.data.reading.raw import Content, UnreadableError
from lifecycle.data.reading.reader_process import read_apart
from lifecycle.data.reading.times import iso_time

PROCESS = Path(pdf_process.__file__)
EDGE = 2  # lines at either end of a page, in which a head, a foot or a number is
LEAST_PAGES = 3  # on which a line is, to be a running head
LEAST_SHARE = 0.3  # of the pages: left and right ones may have heads of their own
FULL = 0.75  # of the length of a page's long lines: a line of so much goes on in the next one
LEAST_FULL = 20  # characters of such a line
_NUMBER = re.compile(
    r"\W*(?:(?:page|seite|página|стр\.?|p\.)\s*)?(?:\d{1,4}|[ivxlc]{1,7})(?:\s*(?:/|of|von|de)\s*\d{1,4})?\W*",
    re.IGNORECASE,
)
_CUT = re.compile("(?:([-\u00ad])\n|[\ufffe\x02]\n?)(?=(.?))")
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?")
_ITEM = re.compile(r"[•·▪\u2013—*-] |\(?\w{1,3}[.)] ")
_ENDS = (".", "!", "?", ":", ";", "。", "”", '"')


def parse_pdf(content: Content) -> Content:
    """The text of a PDF file; raises `UnreadableError`."""
    assert isinstance(content.data, bytes)
    if importlib.util.find_spec("pypdfium2") is None:
        what = "PDF files are read by an extra: install it with `uv sync --extra pdf`, or exclude them"
        raise UnreadableError("unknown_format", what)
    answer = read_apart(PROCESS, "PDF files", content.data)
    if "reason" in answer:
        raise UnreadableError(answer["reason"], answer["detail"])
    text = join_pages(answer["pages"])
    if not text.strip():
        what = f"no text on {len(answer['pages'])} pages: scanned?"
        raise UnreadableError("no_text", what)
    meta = {name.lower(): value for name, value in answer["meta"].items() if name in ("Title", "Author", "Subject")}
    meta |= {"pages": len(answer["pages"])} | ({"broken_pages": answer["broken"]} if answer["broken"] else {})
    return replace(
        content, data=text, meta=content.meta | meta, time=content.time or _time(answer["meta"].get("CreationDate", ""))
    )


def join_pages(pages: Sequence[str]) -> str:
    """The text of pages in their order, without what runs on all of them."""
    lines = [[line.strip() for line in _mended(page).split("\n") if line.strip()] for page in pages]
    running = _running(lines)
    paragraphs: list[str] = []
    for page in lines:
        kept = [
            line for place, line in enumerate(page)
            if not (_is_edge(place, page) and (_shape(line) in running or (len(pages) > 1 and _NUMBER.fullmatch(line))))
        ]  # fmt: skip
        found = _paragraphs(kept)
        if paragraphs and found and _goes_on(paragraphs[-1], found[0]):
            paragraphs[-1] += f" {found.pop(0)}"
        paragraphs += found
    return "\n".join(paragraphs) + "\n" if paragraphs else ""


def _mended(page: str) -> str:
    """A page's lines, with words in one piece that lines cut; PDFium marks the cut with U+FFFE or U+0002."""
    return _CUT.sub(_joined, page.replace("\r\n", "\n").replace("\r", "\n"))


def _joined(found: re.Match[str]) -> str:
    before, behind = found.string[max(0, found.start() - 1) : found.start()], found[2]
    if before.isalpha() and behind.islower():
        return ""
    return found[0] if found[1] else "-"


def _is_edge(place: int, page: Sequence[str]) -> bool:
    return not EDGE <= place < len(page) - EDGE


def _shape(line: str) -> str:
    return re.sub(r"\d+", "0", line)


def _running(pages: Sequence[Sequence[str]]) -> frozenset[str]:
    """The lines at the ends of pages, but for their numbers, that are on many."""
    shapes = Counter(
        shape for page in pages for shape in {_shape(line) for place, line in enumerate(page) if _is_edge(place, page)}
    )
    least = max(LEAST_PAGES, LEAST_SHARE * len(pages))
    return frozenset(shape for shape, number in shapes.items() if number >= least)


def _paragraphs(lines: Sequence[str]) -> list[str]:
    lengths = sorted(map(len, lines))
    full = max(LEAST_FULL, FULL * lengths[len(lengths) * 9 // 10]) if lengths else 0
    found: list[str] = []
    is_full = False
    for line in lines:
        if found and is_full and _goes_on(found[-1], line):
            found[-1] += f" {line}"
        else:
            found.append(line)
        is_full = len(line) >= full
    return found


def _goes_on(before: str, line: str) -> bool:
    """Whether a line goes on with a sentence that the one before leaves open, or is in the middle of one."""
    return not _ITEM.match(line) and (line[0].islower() or not before.endswith(_ENDS)) and len(before) > 1


def _time(date: str) -> str | None:
    found = _DATE.match(date)
    if found is None:
        return None
    year, month, day, *clock = found.groups()
    parts = [part for part in (year, month, day) if part]
    return iso_time("-".join(parts) + (f"T{':'.join(clock)}" if all(clock) and len(parts) == 3 else ""))
