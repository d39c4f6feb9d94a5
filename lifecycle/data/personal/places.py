"""What is personal in where documents are from: their addresses and paths.

The rules are those of texts, and find what is written with `%40`, too. A host is no person's: lists of hosts need it,
and a server's number is its name. What compares documents by address has a hash of the whole one (`raw.py`). In 11,978
addresses in Debian's documentation they mask two, mails in an archive's addresses, and in 60,000 of its paths nothing.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote, unquote

import pyarrow as pa

from lifecycle.data.config import PiiKind
from lifecycle.data.personal.masking import MASKS, Span, mask, windows_of
from lifecycle.data.personal.pii_rule import Where

type Column = Literal["url", "path"]

_HEAD = re.compile(r"(?P<scheme>\s*(?:[^:/?#]*:)?//)(?:(?P<login>[^/?#]*)@)?(?P<host>[^/?#]*)")
_TAIL = re.compile(
    r"(?:\.\w+(?:\.(?:gz|bz2|xz|zstd?))?)?(?P<row>(?::\d+)?)\Z"
)  # of a path: an ending, and the number of a row
_NO_PART = str.maketrans("", "", "\t\r\n")
_UNQUOTED = "/?#[]@!$&'()*+,;=:~"  # what an address, or a path, may have as it is


@dataclass(frozen=True)
class Masked:
    """An address or a path without what is personal, and what was found, in its bytes as it is now."""

    text: str
    spans: tuple[Span, ...]


def masked_places(
    column: Column, places: Sequence[str | None], languages: Sequence[str], kept: Collection[PiiKind] = ()
) -> dict[int, Masked]:
    """The numbers of the places in which there is something personal, and what they are then."""
    given = [place or "" for place in places]
    signs = {number for texts in (given, [*map(unquote, given)]) for number, _ in windows_of(pa.array(texts))}
    of = _masked_address if column == "url" else _masked_path
    found = {number: of(given[number], Where(False, languages[number]), kept) for number in sorted(signs)}
    return {number: masked for number, masked in found.items() if masked.spans}


def _masked_address(address: str, where: Where, kept: Collection[PiiKind]) -> Masked:
    """An address with its host as it is; of a login one thing is said to be found. Tabs and line ends are no part of an
    address: without them `/<tab>/a.org` has a host (WHATWG URL Standard, "basic URL parser")."""
    address = address.translate(_NO_PART)
    head = _HEAD.match(address)
    if head is None:
        return _masked(address, where, kept)
    rest = _masked(address[head.end() :], where, kept)
    host = head["host"].partition(":")[0]
    authority = f"{head['scheme'].strip()}{head['login']}@{host}"
    is_open = head["login"] and head["login"] not in MASKS.values()
    login = _mask(authority, where, tuple(MASKS))[1] if is_open else []
    if not login:
        return _behind(head[0], (), rest)
    kind, begin = login[0].kind, len(head["scheme"].encode())
    word = head["login"] if kind in kept else MASKS[kind]
    span = login[0]._replace(begin=begin, end=begin + len(word.encode()))
    return _behind(f"{head['scheme']}{word}@{head['host']}", (span,), rest)


def _masked_path(path: str, where: Where, kept: Collection[PiiKind]) -> Masked:
    """A path with the number of its row; a name that ends like a file's is looked at without its ending, too."""
    tail = _TAIL.search(path)
    assert tail is not None  # it may be empty
    for ending in (tail["row"], tail[0]):
        masked = _masked(path.removesuffix(ending), where, kept)
        if masked.spans:
            return replace(masked, text=masked.text + ending)
    return Masked(path, ())


def _behind(head: str, spans: tuple[Span, ...], rest: Masked) -> Masked:
    by = len(head.encode())
    moved = (span._replace(begin=span.begin + by, end=span.end + by) for span in rest.spans)
    return Masked(head + rest.text, (*spans, *moved))


def _masked(text: str, where: Where, kept: Collection[PiiKind]) -> Masked:
    """A text whose masks leave nothing more to find; if they do, all of it is masked as the first thing."""
    masked = _masked_once(text, where, kept)
    if masked.text == text or _masked_once(masked.text, where, kept).text == masked.text:
        return masked
    first = next(span for span in masked.spans if span.kind not in kept)
    return Masked(MASKS[first.kind], (first._replace(begin=0, end=len(MASKS[first.kind])),))


def _masked_once(text: str, where: Where, kept: Collection[PiiKind]) -> Masked:
    plain = unquote(text)
    if plain != text:
        masked, spans = _mask(plain, where, kept)
        if any(span.kind not in kept for span in spans):
            return _quoted(masked, spans)
    masked, spans = _mask(text, where, kept)
    return Masked(masked.decode(), tuple(spans))


def _mask(text: str, where: Where, kept: Collection[PiiKind]) -> tuple[bytes, list[Span]]:
    return mask(text.encode(), dict(windows_of(pa.array([text]))).get(0, []), where, kept)


def _quoted(text: bytes, spans: Sequence[Span]) -> Masked:
    """A text as addresses are written."""
    pieces, moved, at = "", list[Span](), 0
    for span in spans:
        pieces += quote(text[at : span.begin], _UNQUOTED)
        own = quote(text[span.begin : span.end], _UNQUOTED)
        moved.append(span._replace(begin=len(pieces), end=len(pieces) + len(own)))
        pieces, at = pieces + own, span.end
    return Masked(pieces + quote(text[at:], _UNQUOTED), tuple(moved))
