"""Finds what is personal in texts and puts a word in its place.

A compiled pass finds where the rules have to look (`compiled_pii.py`). The words are identifiers, so that source code
still parses. What must hold: masking twice changes nothing more.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.config import PiiKind
from lifecycle.data.personal.accounts import ACCOUNTS
from lifecycle.data.personal.addresses import ADDRESSES
from lifecycle.data.personal.national_ids import NATIONAL_IDS
from lifecycle.data.personal.phones import PHONES
from lifecycle.data.personal.pii_rule import CONTEXT, Found, Rule, Sign, Where
from lifecycle.data.personal.secrets import SECRETS

MASKS: dict[PiiKind, str] = {
    "email": "EMAIL_ADDRESS", "phone": "PHONE_NUMBER", "ip": "IP_ADDRESS", "iban": "IBAN_NUMBER", "card": "CARD_NUMBER",
    "national_id": "NATIONAL_ID", "secret": "SECRET_KEY",
}  # fmt: skip
RULES: tuple[Rule, ...] = (
    *SECRETS,
    *ADDRESSES,
    *ACCOUNTS,
    *NATIONAL_IDS,
    *PHONES,
)  # of two that overlap the first counts
# Words of all rules that look for nothing without one: most windows have none, and are looked at once.
_NAMED = {rule: rule.words.pattern for rule in RULES if rule.words and not rule.elsewhere}
_NAMING, _LEAST_NAMED = re.compile(b"|".join(_NAMED.values())), min(rule.least_digits for rule in _NAMED)
BYTES_A_WINDOW = 64  # the room for windows that is tried first
# The most bytes before something masked from which a match can reach it.
_REACH = {
    Sign.AT: 512, Sign.SPELT_AT: 640, Sign.DIGITS: 256, Sign.IPV6: 128, Sign.IBAN: 128, Sign.TOKEN: 12_000,
    Sign.ASSIGNED: 512, Sign.KEY_BLOCK: 20_000,
}  # fmt: skip
_SIGN, _BEGIN, _END = attrgetter("sign"), attrgetter("begin"), attrgetter("end")


class Window(NamedTuple):
    """A place in the bytes of a text where the rules of a sign look for what begins in it before `until` and ends at
    `end`, or before; the digits there, and those of the longest number."""

    sign: int
    begin: int
    until: int
    end: int
    digits: int
    longest: int


class Span(NamedTuple):
    """Something personal in a text, or the word that stands for it now. `begin` and `end` count bytes."""

    kind: PiiKind
    rule: str
    begin: int
    end: int
    value: str


def windows_of(texts: pa.Array) -> Iterator[tuple[int, list[Window]]]:
    """The numbers of the texts with a sign of something personal, in order, and the places to look at."""
    found = _windows(texts)
    for number, rows in groupby(found.tolist(), key=itemgetter(0)):
        yield number, _joined(Window(sign, begin, end, end, *digits) for _, sign, begin, end, *digits in rows)


def _joined(windows: Iterable[Window]) -> list[Window]:
    """Windows by sign, those that overlap as one: what one of them cuts off is whole in it."""
    joined: list[Window] = []
    for window in sorted(windows):
        last = joined[-1] if joined else None
        if last is not None and last.sign == window.sign and window.begin <= last.end:
            end = max(last.end, window.end)
            digits, longest = max(last.digits, window.digits), max(last.longest, window.longest)
            joined[-1] = Window(last.sign, last.begin, end, end, digits, longest)
        else:
            joined.append(window)
    return joined


def _windows(texts: pa.Array) -> NDArray[np.int64]:
    """`[windows, COLUMNS]`."""
    from lifecycle.data.personal.compiled_pii import COLUMNS, find_windows

    if not len(texts):
        return np.zeros((0, COLUMNS), np.int64)
    data, ends = utf8(texts)
    windows = np.empty((int(ends[-1] - ends[0]) // BYTES_A_WINDOW + 16, COLUMNS), np.int64)
    num = find_windows(data, ends, _byte_classes(), windows)
    if num > len(windows):
        windows = np.empty((num, COLUMNS), np.int64)
        num = find_windows(data, ends, _byte_classes(), windows)
    return windows[:num]


def find(text: bytes, windows: Sequence[Window], where: Where) -> list[Span]:
    """What is personal in a text, in order and without overlaps: a rule finds it outside what those before it found."""
    of_sign = {sign: list(own) for sign, own in groupby(windows, key=_SIGN)}
    long = (window for window in of_sign.get(Sign.DIGITS, ()) if window.digits >= _LEAST_NAMED)
    named = [window for window in long if _NAMING.search(_before_end(text, window))]
    spans: list[Span] = []
    for rule in RULES:
        own = of_sign.get(rule.sign, ()) if rule.words is None or rule.elsewhere is not None else named
        if own and rule.part in text and (new := list(_found(rule, text, own, where, spans))):
            spans = sorted((*spans, *new), key=_BEGIN)
    return spans


def _found(rule: Rule, text: bytes, windows: Sequence[Window], where: Where, taken: Sequence[Span]) -> Iterator[Span]:
    """What a rule finds outside some spans; of two that overlap the first."""
    for window, pattern in _places(rule, text, windows):
        at = max(window.begin, where.done)
        # A window may be of megabytes and have thousands of such places in it: what begins in one ends soon behind it.
        end = window.end if window.until == window.end else min(window.end, window.until + _REACH[rule.sign])
        while at < window.until and (match := pattern.search(text, at, end)) is not None:
            at = match.start() + 1
            if (other := _covering(match.start(), taken)) is not None:
                at = other.end
                continue
            found = rule.check(match, where) if at <= window.until else None
            if found is None or _is_in(found, taken):
                continue
            yield Span(rule.kind, found.name or rule.name, found.begin, found.end, found.value)
            where, at = Where(where.is_code, where.language, found.end), found.end


def _places(rule: Rule, text: bytes, windows: Sequence[Window]) -> Iterator[tuple[Window, re.Pattern[bytes]]]:
    """Where a rule has to look, and for what."""
    for window in windows:
        if window.digits < rule.least_digits or window.longest < rule.least_number:
            continue
        if rule.needs and all(text.find(byte, window.begin, window.end) < 0 for byte in rule.needs):
            continue
        if rule.words is None:
            yield window, rule.pattern
            continue
        at = window.begin
        for begin, until in _behind_words(rule.words, text, window):
            if rule.elsewhere is not None and at < begin:
                yield window._replace(begin=at, until=begin), rule.elsewhere
            yield window._replace(begin=begin, until=until), rule.pattern
            at = until
        if rule.elsewhere is not None and at < window.until:
            yield window._replace(begin=at), rule.elsewhere


def _behind_words(words: re.Pattern[bytes], text: bytes, window: Window) -> Iterator[tuple[int, int]]:
    """The places of a window that are in the `CONTEXT` behind some words, those that overlap as one."""
    first = max(0, window.begin - CONTEXT)
    begin = until = window.begin
    for word in words.finditer(_before_end(text, window)):
        end = first + word.end()
        if end > until:
            if begin < until:
                yield begin, until
            begin = end
        until = min(window.until, end + CONTEXT)
    if begin < until:
        yield begin, until


def _before_end(text: bytes, window: Window) -> bytes:
    """A window and the words before it, in small letters."""
    return text[max(0, window.begin - CONTEXT) : window.until].lower()


def mask(text: bytes, windows: Sequence[Window], where: Where, kept: Collection[PiiKind]) -> tuple[bytes, list[Span]]:
    """The text with all but the kept kinds masked, and what was found, where it or its mask is now.

    A mask can expose a number next to the replaced text, or become a part of what is found then, so it looks again.
    """
    spans: list[Span] = []
    while True:
        left_alone = [span for span in spans if span.kind in kept]
        new = [span for span in find(text, windows, where) if not _is_in(span, left_alone)]
        if not new:
            return text, spans
        old = [span for span in spans if not _is_in(span, new)]
        masked, spans, changed = _replaced(text, old, new, kept)
        if masked == text:
            return text, spans
        text, windows = masked, _beside(changed, dict(windows_of(pa.array([masked.decode()]))).get(0, []))


def _beside(spans: Sequence[Span], windows: Sequence[Window]) -> list[Window]:
    """Of the windows what begins so near to a span that rules see it: in the rest they have found all."""
    near: list[Window] = []
    for window in windows:
        reach = _REACH[Sign(window.sign)]
        at = bisect_left(spans, window.begin - CONTEXT, key=_END)
        until = window.begin
        while until < window.until and at < len(spans) and spans[at].begin <= window.end + CONTEXT:
            begin, until = max(window.begin, spans[at].begin - reach), min(window.until, spans[at].end + CONTEXT)
            if near and near[-1].sign == window.sign and begin <= near[-1].until:
                near[-1] = near[-1]._replace(until=max(near[-1].until, until))
            elif begin < until:
                near.append(window._replace(begin=begin, until=until))
            at += 1
    return near


def _covering(place: int, spans: Sequence[Span]) -> Span | None:
    """The one of some spans, which are in order, that a place is in."""
    at = bisect_right(spans, place, key=_BEGIN)
    return spans[at - 1] if at > 0 and spans[at - 1].end > place else None


def _is_in(span: Span | Found, spans: Sequence[Span]) -> bool:
    """Whether a span overlaps one of some spans, which are in order."""
    behind = bisect_right(spans, span.begin, key=_BEGIN)
    return _covering(span.begin, spans) is not None or (behind < len(spans) and spans[behind].begin < span.end)


def _replaced(
    text: bytes, old: Sequence[Span], new: Sequence[Span], kept: Collection[PiiKind]
) -> tuple[bytes, list[Span], list[Span]]:
    """The text with a mask in the place of each span that is none yet and not to be kept, and where all, and the new
    ones, are then."""
    pieces: list[bytes] = []
    moved: list[Span] = []
    changed: list[Span] = []
    are_new = set(new)
    at = size = 0  # of the text that is done with, and of what has become of it
    for span in sorted((*old, *new), key=_BEGIN):
        own = text[span.begin : span.end] if span.kind in kept else MASKS[span.kind].encode()
        pieces += text[at : span.begin], own
        begin = size + span.begin - at
        at, size = span.end, begin + len(own)
        moved.append(Span(span.kind, span.rule, begin, size, span.value))
        if span in are_new:
            changed.append(moved[-1])
    return b"".join((*pieces, text[at:])), moved, changed


@cache
def _byte_classes() -> NDArray[np.uint16]:
    from lifecycle.data.personal.compiled_pii import byte_classes

    return byte_classes()
