"""Tags, comments and references in the bytes of a web page, found as browsers find them (HTML Living Standard, 13.2.5),
however broken the page. Compiled by Numba, and imported late, as `compiled_words.py` is.

What must hold: each function gives a place behind the one that it is given, so that a page takes time with its size.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import uncounted
from lifecycle.data.reading.html_marks import ALL
from lifecycle.data.reading.html_tags import PRIME, SEED, hash_of_name

LESS, GREATER, SLASH, BANG, QUESTION, BLANK, LINE_FEED = map(ord, "<>/!? \n")
# Kinds of bytes in text.
ORDINARY, SPACE, MARK, SIGN = range(4)
# Columns of a tag: its name's hash and place, whether it ends with a slash, and the places of its attributes' values.
KEY, NAME, NAME_END, IS_CLOSED, BEGIN, END = 0, 1, 2, 3, 4, 8
COLUMNS = 12
CLASS, ID, ROLE, HIDDEN = range(4)  # the attributes

_EQUALS, _AND, _NUMBER, _SEMICOLON, _DASH, _QUOTE, _APOSTROPHE = map(ord, "=&#;-\"'")
_SEED, _PRIME = np.uint64(SEED), np.uint64(PRIME)
_TEX = np.frombuffer(b"math/tex", np.uint8)


def _byte_kinds() -> Any:
    kinds = np.full(256, ORDINARY, np.uint8)
    kinds[list(b" \t\n\v\f\r")] = SPACE
    kinds[[ord(mark) for mark in ALL]] = MARK
    kinds[list(b"<&")] = SIGN
    return kinds


KINDS = _byte_kinds()
_CLASS, _ID, _ROLE, _HIDDEN = (np.uint64(hash_of_name(name)) for name in ("class", "id", "role", "hidden"))


@uncounted
def is_letter(byte: Any) -> Any:
    """Whether a byte is a letter of ASCII."""
    return ord("a") <= byte | 32 <= ord("z")


@uncounted
def bits_of(key: Any, table: Any) -> Any:
    """What a tag does (`html_tags.py`), by its name's hash."""
    place = key & (len(table) - 1)
    while table[place, 0]:
        if table[place, 0] == np.uint64(key):
            return np.int64(table[place, 1])
        place = (place + 1) & (len(table) - 1)
    return 0


@uncounted
def hash_of(page: Any, begin: Any, end: Any) -> Any:
    """The hash of some bytes."""
    key = _SEED
    for at in range(begin, end):
        key = (key ^ np.uint64(page[at])) * _PRIME
    return np.int64(key ^ (key >> np.uint64(32)))


@uncounted
def read_tag(page: Any, at: Any, tag: Any) -> Any:
    """Fills in the tag whose name begins at a place; returns the place behind it, of one that the page's end cuts off a
    place behind that end."""
    tag[:] = 0
    tag[NAME] = at
    key, at = _name(page, at)
    tag[KEY], tag[NAME_END] = np.int64(key), at
    while at < len(page):
        byte = page[at]
        if byte == GREATER:
            return at + 1
        if byte <= BLANK or byte == SLASH:
            tag[IS_CLOSED] = byte == SLASH
            at += 1
            continue
        tag[IS_CLOSED] = 0
        key, at = _name(page, at)
        begin, end, at = _value(page, at)
        column = CLASS if key == _CLASS else ID if key == _ID else ROLE if key == _ROLE else -1
        column = HIDDEN if key == _HIDDEN else column
        if column >= 0 and not tag[BEGIN + column]:
            tag[BEGIN + column], tag[END + column] = begin, end
    return len(page) + 1


@uncounted
def _name(page: Any, at: Any) -> Any:
    """The hash of the name that begins at a place, in small letters, and the place behind it."""
    key = _SEED
    begin = at
    while at < len(page):
        byte = page[at]
        if byte <= BLANK or byte in (GREATER, SLASH) or (byte == _EQUALS and at > begin):
            break
        if ord("A") <= byte <= ord("Z"):
            byte |= np.uint8(32)
        key = (key ^ np.uint64(byte)) * _PRIME
        at += 1
    return key, at


@uncounted
def _value(page: Any, at: Any) -> Any:
    """Where the value of an attribute begins and ends whose name ends at a place, and the place behind it."""
    begin = _behind_blanks(page, at)
    if begin >= len(page) or page[begin] != _EQUALS:
        return at, at, at
    begin = _behind_blanks(page, begin + 1)
    end = begin
    if begin < len(page) and (page[begin] == _QUOTE or page[begin] == _APOSTROPHE):
        end += 1
        while end < len(page) and page[end] != page[begin]:
            end += 1
        return begin + 1, end, end + 1
    while end < len(page) and page[end] > BLANK and page[end] != GREATER:
        end += 1
    return begin, end, end


@uncounted
def _behind_blanks(page: Any, at: Any) -> Any:
    while at < len(page) and page[at] <= BLANK:
        at += 1
    return at


@uncounted
def behind_comment(page: Any, at: Any) -> Any:
    """The place behind the comment, declaration or broken tag that begins at a place."""
    if page[at + 1] != BANG or at + 3 >= len(page) or page[at + 2] != _DASH or page[at + 3] != _DASH:
        at += 2
        while at < len(page) and page[at] != GREATER:
            at += 1
        return at + 1
    at += 4
    while at < len(page):  # `<!-->` and `<!--->` are whole
        if page[at] == GREATER and page[at - 1] == _DASH and page[at - 2] == _DASH:
            return at + 1
        if page[at] == GREATER and page[at - 1] == BANG and page[at - 2] == _DASH and page[at - 3] == _DASH:
            return at + 1
        at += 1
    return at


@uncounted
def end_of(page: Any, at: Any, key: Any) -> Any:
    """Where the next end tag of a name begins, and the place behind it; the page's end if there is none."""
    while at + 2 < len(page):
        if page[at] == LESS and page[at + 1] == SLASH:
            found, behind = _name(page, at + 2)
            if np.int64(found) == key:
                while behind < len(page) and page[behind] != GREATER:
                    behind += 1
                return at, behind + 1
        at += 1
    return len(page), len(page)


@uncounted
def says_tex(page: Any, begin: Any, end: Any) -> Any:
    """Whether a tag's bytes say that TeX is in it, `math/tex`."""
    for at in range(begin, end - len(_TEX) + 1):
        length = 0
        while length < len(_TEX) and page[at + length] == _TEX[length]:
            length += 1
        if length == len(_TEX):
            return True
    return False


@uncounted
def behind_mark(page: Any, at: Any) -> Any:
    """The place behind a reference to a mark, such as `&#1;`; behind its first byte if it is none."""
    at += 1
    if at + 1 >= len(page) or page[at] != _NUMBER:
        return at
    ampersand = at
    at += 1
    base = 16 if page[at] | 32 == ord("x") else 10
    at += base == 16
    begin, code = at, 0
    while at < len(page) and code < 256:
        digit = np.int64(page[at])
        if ord("0") <= digit <= ord("9"):
            digit -= ord("0")
        elif base == 16 and ord("a") <= digit | 32 <= ord("f"):
            digit = (digit | 32) - ord("a") + 10
        else:
            break
        code = code * base + digit
        at += 1
    if at == begin or code >= 256 or KINDS[code] != MARK:
        return ampersand
    return at + 1 if at < len(page) and page[at] == _SEMICOLON else at


@uncounted
def is_open_reference(text: Any, begin: Any, end: Any) -> Any:
    """Whether nothing but what may become a longer reference to a character follows an ampersand."""
    for at in range(begin + 1, end):
        byte = text[at]
        if not (is_letter(byte) or ord("0") <= byte <= ord("9") or byte == _NUMBER):
            return False
    return True
