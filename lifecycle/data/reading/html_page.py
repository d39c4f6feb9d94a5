"""A page of the web made small before it is parsed, with its blocks judged by their names.

A parser's time and that of what reads its tree go with the number of tags and attributes, most of which say nothing of
the text. The loops: `compiled_html.py` and, for what was judged, `compiled_names.py`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lifecycle.data.reading import html_blocks as blocks
from lifecycle.data.reading import html_tags as tags
from lifecycle.data.reading.html_formulas import with_tex

# The attributes that blocks have in a small page, by what is said of them, in the order of the bits.
_TEXTS = {
    blocks.BESIDE: b" beside",
    blocks.LANDMARK: b" landmark",
    blocks.HIDDEN: b" hidden",
    blocks.AROUND: b" around",
    blocks.MAIN_ROLE: b" around",
    blocks.FOREIGN: b" foreign",
}
_ATTRIBUTES = np.frombuffer(b"".join(_TEXTS.values()), np.uint8)
_ENDS = np.cumsum([0, *map(len, _TEXTS.values())])
_LONGEST = len(_ATTRIBUTES) + len("<span>")  # bytes that an event writes


@dataclass(frozen=True)
class Page:
    """A small page: HTML with marks, whose blocks have the attributes `beside`, `foreign`, `landmark`,
    `hidden` and `around`."""

    html: str
    num_paragraphs: int
    has_around: bool


def small_page(html: str) -> Page:
    """The page with nothing but what its text is made of."""
    from lifecycle.data.reading import compiled_html as loops
    from lifecycle.data.reading.compiled_names import settle

    page, work = _scan(html)
    has_formulas = bool(work.counts[loops.FORMULAS])
    if has_formulas:
        page, work = _scan(with_tex(html))
    counts = work.counts
    events, values = work.events[: counts[loops.EVENTS]], work.values[: counts[loops.VALUES]]
    verdicts = _verdicts(page, values, has_formulas)
    said = int(np.bitwise_or.reduce(verdicts))
    around, other = (blocks.AROUND, blocks.MAIN_ROLE) if said & blocks.AROUND else (blocks.MAIN_ROLE, blocks.AROUND)
    verdicts &= ~np.uint8(other)
    article = 0 if said & around else _article(int(counts[loops.ARTICLES]), int(counts[loops.MAINS]))
    small = np.empty(counts[loops.SIZE] + len(events) * _LONGEST, np.uint8)
    size = settle(work.out, counts[loops.SIZE], events, verdicts, article, _ATTRIBUTES, _ENDS, small)
    text = small[:size].tobytes().decode()
    return Page(text, int(counts[loops.PARAGRAPHS]), bool(said & around))


def _scan(html: str) -> Any:
    """The bytes of a page, and what is found in them (`compiled_html.Work`)."""
    from lifecycle.data.reading import compiled_html as loops
    from lifecycle.data.reading.compiled_tags import COLUMNS

    page = np.frombuffer(html.encode(), np.uint8)
    num = len(page)  # of bytes: an event has 4 of them or more, a value 5, an element 3; `&<` becomes `&<!---->&lt;`
    work = loops.Work(
        known=tags.KNOWN,
        out=np.empty(6 * num + 16, np.uint8),
        events=np.empty((num // 4 + 16, loops.EVENT_COLUMNS), np.int64),
        values=np.empty((num // 5 + 16, loops.VALUE_COLUMNS), np.int64),
        counts=np.zeros(loops.COUNTS, np.int64),
        table=np.zeros(1 << (num // 4 + 16).bit_length(), np.int32),
        keys=np.empty(num // 3 + 16, np.int64),
        opened=np.empty(num // 3 + 16, np.int32),
        tag=np.zeros(COLUMNS, np.int64),
    )
    loops.scan(page, work)
    return page, work


def _verdicts(page: Any, values: Any, has_formulas: bool) -> Any:
    """What each value says of its blocks, by bits."""
    from lifecycle.data.reading import compiled_html as loops

    source = page.tobytes()
    verdicts = np.zeros(len(values), np.uint8)
    verdicts[loops.IS_HIDDEN] = blocks.HIDDEN
    for number, (begin, end, attribute, _) in enumerate(values[loops.FIRST_VALUE :].tolist(), loops.FIRST_VALUE):
        value = source[begin:end]
        if attribute == loops.CLASS:
            verdicts[number] = blocks.of_class(value, has_formulas)
        else:
            verdicts[number] = blocks.of_id(value) if attribute == loops.ID else blocks.of_role(value)
    return verdicts


def _article(articles: int, mains: int) -> int:
    """The tag of the one element that the page's text is in, 0 if it does not say so."""
    return tags.ARTICLE if articles == 1 else tags.MAIN if mains == 1 else 0
