"""Finds what is personal in texts and puts a word in its place.

A compiled pass finds where the rules have to look (`compiled_pii.py`). The words are identifiers, so that source code
still parses. What must hold: masking twice changes nothing more.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import itemgetter

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
_OF_SIGN = {int(sign): [(order, rule) for order, rule in enumerate(RULES) if rule.sign == sign] for sign in Sign}
BYTES_A_WINDOW = 64  # the room for windows that is tried first

# A place where rules have to look: sign, begin and end in the bytes of a text, digits.
type Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Span:
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
        yield number, [(sign, begin, end, digits) for _, sign, begin, end, digits in rows]


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
    """What is personal in a text, in order and without overlaps."""
    begins: list[int] = []
    spans: list[Span] = []
    for order, found in sorted(_candidates(text, windows, where), key=_order):
        at = bisect_right(begins, found.begin)
        is_free = (at == 0 or spans[at - 1].end <= found.begin) and (at == len(spans) or found.end <= begins[at])
        if is_free:
            rule = RULES[order]
            begins.insert(at, found.begin)
            spans.insert(at, Span(rule.kind, found.name or rule.name, found.begin, found.end, found.value))
    return spans


def _order(candidate: tuple[int, Found]) -> tuple[int, int, int]:
    """By rule, then by place; of two at a place the longer: the other one is cut off where a window ends."""
    order, found = candidate
    return order, found.begin, -found.end


def _candidates(text: bytes, windows: Sequence[Window], where: Where) -> Iterator[tuple[int, Found]]:
    """All that rules find, with the place of each rule in `RULES`."""
    for sign, begin, end, digits in windows:
        for order, rule in _OF_SIGN[sign]:
            if digits < rule.least_digits:
                continue
            at = begin
            while match := rule.pattern.search(text, at, end):
                found = rule.check(match, where)
                if found is not None:
                    yield order, found
                at = match.start() + 1


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
        masked, spans = _replaced(text, sorted((*old, *new), key=lambda span: span.begin), kept)
        if masked == text:
            return text, spans
        text, windows = masked, _beside(spans, dict(windows_of(pa.array([masked.decode()]))).get(0, []))


def _beside(spans: Sequence[Span], windows: Sequence[Window]) -> list[Window]:
    """The windows with a span inside or so near that rules see it: in the others they have found all."""
    ends = [span.end for span in spans]
    near: list[Window] = []
    for window in windows:
        at = bisect_left(ends, window[1] - CONTEXT)
        if at < len(spans) and spans[at].begin <= window[2] + CONTEXT:
            near.append(window)
    return near


def _is_in(span: Span, spans: Sequence[Span]) -> bool:
    """Whether a span overlaps one of some spans, which are in order."""
    at = bisect_right(spans, span.begin, key=lambda other: other.begin)
    return (at > 0 and spans[at - 1].end > span.begin) or (at < len(spans) and spans[at].begin < span.end)


def _replaced(text: bytes, spans: Sequence[Span], kept: Collection[PiiKind]) -> tuple[bytes, list[Span]]:
    """The text with a mask in the place of each span that is none yet and not to be kept, and where all are then."""
    pieces: list[bytes] = []
    moved: list[Span] = []
    at = size = 0  # of the text that is done with, and of what has become of it
    for span in spans:
        own = text[span.begin : span.end] if span.kind in kept else MASKS[span.kind].encode()
        pieces += text[at : span.begin], own
        begin = size + span.begin - at
        at, size = span.end, begin + len(own)
        moved.append(replace(span, begin=begin, end=size))
    return b"".join((*pieces, text[at:])), moved


@cache
def _byte_classes() -> NDArray[np.uint16]:
    from lifecycle.data.personal.compiled_pii import byte_classes

    return byte_classes()
