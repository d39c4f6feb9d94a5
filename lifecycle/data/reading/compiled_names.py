"""What was judged of a page's blocks by their names, written into the small page of `compiled_html.py`. Compiled by
Numba, and imported late, as `compiled_words.py` is."""

from typing import Any

import numpy as np

from lifecycle.core.compiled import uncounted
from lifecycle.data.reading import html_marks as marks
from lifecycle.data.reading.compiled_html import AT, BEGUN, CLOSED, ENDED, EVENT_COLUMNS, OF_VALUES, OPENED, WHAT
from lifecycle.data.reading.compiled_tags import GREATER

_ARTICLE, _ARTICLE_END = ord(marks.ARTICLE), ord(marks.ARTICLE_END)
_SPAN, _SPAN_END = np.frombuffer(b"<span", np.uint8), np.frombuffer(b"</span>", np.uint8)


@uncounted
def settle(out: Any, size: Any, events: Any, verdicts: Any, article: Any, texts: Any, ends: Any, page: Any) -> Any:
    """Fills in the page with what is to be written of its events; returns its size.

    `verdicts`: the bits of each value; `article`: the tag whose elements get the article's marks; `texts`: the
    attributes that bits become, one behind the other, and `ends`, where each ends.
    """
    done = num = 0
    for event in range(len(events)):
        bits = _bits(events, event, verdicts, article)
        if not bits:
            continue
        num = _copy(out, done, events[event, AT], page, num)
        done = events[event, AT]
        what = events[event, WHAT]
        if what in (BEGUN, ENDED):
            page[num] = _ARTICLE if what == BEGUN else _ARTICLE_END
            num += 1
        elif what == CLOSED:
            num = _copy(_SPAN_END, 0, len(_SPAN_END), page, num)
        else:
            num = _copy(_SPAN, 0, len(_SPAN) if what == OPENED else 0, page, num)
            for bit in range(len(ends) - 1):
                if bits >> bit & 1:
                    num = _copy(texts, ends[bit], ends[bit + 1], page, num)
            page[num] = GREATER
            num += what == OPENED
    return _copy(out, done, size, page, num)


@uncounted
def _bits(events: Any, event: Any, verdicts: Any, article: Any) -> Any:
    """What an event's values say, 0 if nothing is to be written."""
    what = events[event, WHAT]
    if what in (BEGUN, ENDED):
        return events[event, OF_VALUES] & article
    own = events[event, OF_VALUES] if what == CLOSED else event
    bits = 0
    for column in range(OF_VALUES, EVENT_COLUMNS):
        bits |= verdicts[events[own, column]]
    return bits


@uncounted
def _copy(source: Any, begin: Any, end: Any, page: Any, num: Any) -> Any:
    """Copies bytes to a place, and returns the one behind."""
    for at in range(begin, end):
        page[num] = source[at]
        num += 1
    return num
