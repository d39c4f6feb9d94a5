"""A page of the web made small: what a parser and a reader need of it, in one pass over its bytes. Compiled by Numba,
and imported late, as `compiled_words.py` is.

Tags that part no blocks go, and so do attributes, comments, scripts, style sheets and white space that means nothing.
Marks (`html_marks.py`) are written where links, headings, cells and code begin and end. The attributes that name a
block are for others to judge: `scan` collects their different values, and `compiled_names.py` writes what was judged.
"""

from typing import Any, NamedTuple

import numpy as np

from lifecycle.core.compiled import uncounted
from lifecycle.data.reading import html_marks as marks
from lifecycle.data.reading import html_tags as tags
from lifecycle.data.reading.compiled_tags import (
    BANG,
    BEGIN,
    BLANK,
    CLASS,
    END,
    GREATER,
    HIDDEN,
    ID,
    IS_CLOSED,
    KEY,
    KINDS,
    LESS,
    LINE_FEED,
    MARK,
    NAME,
    NAME_END,
    QUESTION,
    ROLE,
    SIGN,
    SLASH,
    SPACE,
    behind_comment,
    behind_mark,
    bits_of,
    end_of,
    hash_of,
    is_letter,
    is_open_reference,
    read_tag,
    says_tex,
)

# What `scan` counts, and where it is.
SIZE, EVENTS, VALUES, PARAGRAPHS, ARTICLES, MAINS, FORMULAS = range(7)
_DEPTH, _CODES, _DRAWINGS, _IS_BLANK, _IS_ROW, _COUNTED, _BLOCK_END = range(7, 14)
COUNTS = 14
# Columns of an event: the place before which something is written, what, and the numbers of values, 0 for none.
AT, WHAT, OF_VALUES = 0, 1, 2
EVENT_COLUMNS = OF_VALUES + 4
# What is written: attributes of a tag, a tag that is only there for its attributes, its end, marks of the article.
ATTRIBUTES, OPENED, CLOSED, BEGUN, ENDED = range(5)
IS_HIDDEN, FIRST_VALUE = 1, 2  # the value that stands for the attribute `hidden`, and the first that is one
VALUE_COLUMNS = 4  # of a value: where it begins and ends, which attribute's it is, its hash

_DEEPEST = 64  # open elements that are looked at for the one that a tag ends
_LINK, _LINK_END, _HEADING, _CELL = ord(marks.LINK), ord(marks.LINK_END), ord(marks.HEADING), ord(marks.CELL)
_ROW, _TABLE_END, _CODE, _CODE_END = ord(marks.ROW), ord(marks.TABLE_END), ord(marks.CODE), ord(marks.CODE_END)
_LESS_SIGN, _NOTHING, _SVG_END = (np.frombuffer(text, np.uint8) for text in (b"&lt;", b"<!---->", b"</svg>"))


class Work(NamedTuple):
    """What `scan` reads and fills in; of any content before, where nothing is said."""

    known: Any  # `html_tags.KNOWN`
    out: Any  # the small page before its names are judged
    events: Any  # rows of what is to be written into it then
    values: Any  # rows of the different values of attributes
    counts: Any  # zeros
    table: Any  # zeros, a power of two of them: numbers of values by their hashes
    keys: Any  # of the elements that are open: the hashes of their names
    opened: Any  # and their events, -1 for none
    tag: Any  # the one that is read (`compiled_tags.read_tag`)


@uncounted
def scan(page: Any, work: Any) -> None:
    """Makes a page small, but for what its blocks' names say."""
    work.counts[VALUES] = FIRST_VALUE
    at = 0
    while at < len(page):
        at = _text(page, at, work)
        if at >= len(page):
            break
        first = page[at + 1] if at + 1 < len(page) else BLANK
        if is_letter(first):
            at = read_tag(page, at + 1, work.tag)
            if at <= len(page):
                at = _begin(page, at, work)
        elif first == SLASH and at + 2 < len(page) and is_letter(page[at + 2]):
            at = read_tag(page, at + 2, work.tag)
            if at <= len(page):
                _end(page, work)
        elif first in (BANG, SLASH, QUESTION):
            behind = behind_comment(page, at)
            if first == BANG and at + 2 < len(page) and page[at + 2] | 32 == ord("d") and behind <= len(page):
                _put_all(page, at, behind, work)  # the page's type decides how tables are read
            at = behind
        else:
            _put_bytes(_LESS_SIGN, work)
            work.counts[_IS_BLANK] = work.counts[_IS_ROW] = 0
            at += 1


@uncounted
def _text(page: Any, at: Any, work: Any) -> Any:
    """Copies text up to the next tag, and returns its place: of white space outside code only the first byte, and none
    at the begin of a block; a blank for a mark, that what is around it does not become a tag or another mark."""
    counts = work.counts
    size, is_blank, is_row, in_code, sign = counts[SIZE], counts[_IS_BLANK], counts[_IS_ROW], counts[_CODES] > 0, -1
    while at < len(page):
        byte = page[at]
        kind = KINDS[byte]
        if byte == LESS:
            break
        behind = behind_mark(page, at) if kind == SIGN else at + 1
        if behind > at + 1 or kind == MARK:
            byte, kind = BLANK, SPACE
        elif kind == SIGN:
            sign = size
        at = behind
        if kind != SPACE:
            is_blank = is_row = 0
        elif is_blank and not in_code:
            continue
        else:
            is_blank = 1
        work.out[size] = byte
        size += 1
    counts[SIZE], counts[_IS_BLANK], counts[_IS_ROW] = size, is_blank, is_row
    if sign >= 0 and is_open_reference(work.out, sign, size):
        _put_bytes(_NOTHING, work)  # what follows a tag that goes does not belong to it
    return at


@uncounted
def _begin(page: Any, at: Any, work: Any) -> Any:
    """Writes a tag that begins an element, with its marks; returns the place from which the page goes on."""
    bits = bits_of(work.tag[KEY], work.known)
    if work.counts[_DRAWINGS]:  # where no text is raw, and tags of HTML end the drawing
        bits = (bits | tags.KEPT) & ~(tags.LOST | tags.RAW)
    if bits & tags.FORMULA and (not bits & tags.LOST or says_tex(page, work.tag[NAME_END], at)):
        work.counts[FORMULAS] += 1
    if bits & tags.LOST:
        return end_of(page, at, work.tag[KEY])[1]
    if bits & (tags.LINK | tags.HEADING | tags.CODE | tags.ARTICLE | tags.MAIN):
        _mark_begin(page, bits, work)
    event = _named(page, bits, work)
    if bits & tags.BLOCK:
        work.counts[_IS_BLANK], work.counts[_BLOCK_END] = 1, work.counts[SIZE]
    if bits & tags.CODE and at < len(page) and page[at] != LINE_FEED:
        _put(LINE_FEED, work)  # a parser drops one behind this tag, and none behind `<pre><code>`
    if bits & tags.COUNTED:
        work.counts[_COUNTED] = work.counts[SIZE]
    if bits & tags.CELL:
        if work.counts[_IS_ROW]:
            _put(_ROW, work)
        _put(_CELL, work)
        work.counts[_IS_BLANK] = 0
    work.counts[_IS_ROW] = bits & tags.ROW
    if bits & tags.RAW:
        end = end_of(page, at, work.tag[KEY])[0]
        _put_all(page, at, end, work)
        return end
    if bits & tags.DRAWING and not work.tag[IS_CLOSED]:
        work.counts[_DRAWINGS] += 1
    if not bits & tags.EMPTY:
        work.keys[work.counts[_DEPTH]], work.opened[work.counts[_DEPTH]] = work.tag[KEY], event
        work.counts[_DEPTH] += 1
    return at


@uncounted
def _mark_begin(page: Any, bits: Any, work: Any) -> None:
    """Writes the mark that stands before a tag."""
    if bits & tags.LINK and page[work.tag[NAME_END]] > BLANK:
        return  # it has no attributes, and leads nowhere
    if bits & tags.LINK:
        _put(_LINK, work)
    elif bits & tags.HEADING:
        _put(_HEADING, work)
    elif bits & tags.CODE:
        _put(_CODE, work)
        work.counts[_CODES] += 1
    else:
        work.counts[ARTICLES if bits & tags.ARTICLE else MAINS] += 1
        _note(BEGUN, bits & (tags.ARTICLE | tags.MAIN), work)
    work.counts[_IS_BLANK] = 0


@uncounted
def _named(page: Any, bits: Any, work: Any) -> Any:
    """Writes a tag that is kept, with an event for its attributes; of another that has some, only the event. Returns
    the event of the latter, and else -1."""
    event = -1
    if work.tag[BEGIN + CLASS] or work.tag[BEGIN + ID] or work.tag[BEGIN + ROLE] or work.tag[BEGIN + HIDDEN]:
        event = _next_event(page, bits, work)
    if bits & tags.KEPT:
        if bits & tags.BLOCK:
            _drop_blank(work)
        _put(LESS, work)
        _put_name(page, work)
        if event >= 0:
            work.events[event, AT], work.events[event, WHAT] = work.counts[SIZE], ATTRIBUTES
            work.counts[EVENTS] += 1
        if work.tag[IS_CLOSED]:
            _put(SLASH, work)
        _put(GREATER, work)
        return -1
    if event < 0 or bits & tags.EMPTY:
        return -1
    work.events[event, AT], work.events[event, WHAT] = work.counts[SIZE], OPENED
    work.counts[EVENTS] += 1
    return event


@uncounted
def _drop_blank(work: Any) -> None:
    """Takes back white space between blocks. That behind words stays: the block behind it may be skipped."""
    counts = work.counts
    if counts[_BLOCK_END] == counts[SIZE] - 1 and KINDS[work.out[counts[SIZE] - 1]] == SPACE and not counts[_CODES]:
        num = counts[EVENTS]
        if not num or work.events[num - 1, AT] < counts[SIZE]:
            counts[SIZE] -= 1


@uncounted
def _next_event(page: Any, bits: Any, work: Any) -> Any:
    """Fills in the values of the next event, and returns its number; -1 if all are empty."""
    event, found = work.counts[EVENTS], 0
    for column in range(HIDDEN):
        begin, end = work.tag[BEGIN + column], work.tag[END + column]
        is_said = begin < end and not (column == ID and bits & tags.TITLED)
        number = _number(page, begin, end, column, work) if is_said else 0
        work.events[event, OF_VALUES + column] = number
        found |= number
    work.events[event, OF_VALUES + HIDDEN] = IS_HIDDEN if work.tag[BEGIN + HIDDEN] else 0
    return event if found or work.tag[BEGIN + HIDDEN] else -1


@uncounted
def _number(page: Any, begin: Any, end: Any, column: Any, work: Any) -> Any:
    """The number of a value, a new one if it was not there."""
    values, table = work.values, work.table
    key = hash_of(page, begin, end) + column
    place = key & (len(table) - 1)
    while table[place]:
        if values[table[place], 3] == key:
            return np.int64(table[place])
        place = (place + 1) & (len(table) - 1)
    number = work.counts[VALUES]
    table[place] = number
    values[number, 0], values[number, 1], values[number, 2], values[number, 3] = begin, end, column, key
    work.counts[VALUES] += 1
    return number


@uncounted
def _end(page: Any, work: Any) -> None:
    """Writes a tag that ends an element, and before it the ends of what is open in that one, with its marks."""
    bits = bits_of(work.tag[KEY], work.known)
    is_block = _close(work) and bits & tags.BLOCK
    if bits & tags.KEPT or work.counts[_DRAWINGS]:
        if is_block:
            _drop_blank(work)
        if work.counts[_COUNTED] == work.counts[SIZE]:
            _put(BLANK, work)
        _put(LESS, work)
        _put(SLASH, work)
        _put_name(page, work)
        _put(GREATER, work)
    if is_block:
        work.counts[_BLOCK_END] = work.counts[SIZE]
    work.counts[_IS_BLANK] = 0
    work.counts[PARAGRAPHS] += bits & tags.PARAGRAPH != 0
    work.counts[_IS_ROW] = 0
    if bits & tags.DRAWING:
        work.counts[_DRAWINGS] = max(0, work.counts[_DRAWINGS] - 1)
    if bits & (tags.LINK | tags.CODE | tags.TABLE):
        _put(_LINK_END if bits & tags.LINK else _CODE_END if bits & tags.CODE else _TABLE_END, work)
        work.counts[_CODES] = max(0, work.counts[_CODES] - (bits & tags.CODE != 0))
    if bits & (tags.ARTICLE | tags.MAIN):
        _note(ENDED, bits & (tags.ARTICLE | tags.MAIN), work)


@uncounted
def _close(work: Any) -> Any:
    """Ends the innermost element of a tag's name, and all in it; returns whether there is one that is not too deep."""
    depth = work.counts[_DEPTH] - 1
    last = max(-1, depth - _DEEPEST)
    while depth > last and work.keys[depth] != work.tag[KEY]:
        depth -= 1
    if depth == last:
        return False
    for place in range(work.counts[_DEPTH] - 1, depth - 1, -1):
        if work.opened[place] >= 0:
            _note(CLOSED, work.opened[place], work)
        if place > depth and work.counts[_DRAWINGS] and bits_of(work.keys[place], work.known) & tags.DRAWING:
            _put_bytes(_SVG_END, work)  # what it stands in may be gone
            work.counts[_DRAWINGS] -= 1
    work.counts[_DEPTH] = depth
    return True


@uncounted
def _note(what: Any, value: Any, work: Any) -> None:
    """Adds an event with one value."""
    event = work.counts[EVENTS]
    work.events[event, AT], work.events[event, WHAT], work.events[event, OF_VALUES] = work.counts[SIZE], what, value
    work.counts[EVENTS] += 1


@uncounted
def _put(byte: Any, work: Any) -> None:
    work.out[work.counts[SIZE]] = byte
    work.counts[SIZE] += 1


@uncounted
def _put_bytes(given: Any, work: Any) -> None:
    for at in range(len(given)):
        _put(given[at], work)


@uncounted
def _put_name(page: Any, work: Any) -> None:
    """Writes a tag's name in small letters."""
    for at in range(work.tag[NAME], work.tag[NAME_END]):
        byte = page[at]
        _put(byte | 32 if is_letter(byte) else byte, work)


@uncounted
def _put_all(page: Any, begin: Any, end: Any, work: Any) -> None:
    """Copies bytes but for marks."""
    for at in range(begin, end):
        if KINDS[page[at]] != MARK:
            _put(page[at], work)
