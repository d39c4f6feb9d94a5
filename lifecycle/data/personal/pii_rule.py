"""The interface of a rule for personal data: a pattern over the bytes of a text, and a check of what it finds."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from lifecycle.data.config import PiiKind

CONTEXT = 60  # bytes before a number in which words say what it is


class Sign(IntEnum):
    """What a text has where a rule's pattern finds something (`compiled_pii.py`)."""

    AT = 0
    SPELT_AT = 1  # `at` in brackets
    DIGITS = 2  # numbers in a row
    IPV6 = 3
    IBAN = 4
    TOKEN = 5  # a long word of letters and digits
    ASSIGNED = 6  # to something that is named like a secret
    KEY_BLOCK = 7


class Where(NamedTuple):
    """What a rule may know of the document: whether it is source code, its language, and the end of what the rule found
    last, which is masked then."""

    is_code: bool
    language: str
    done: int = 0


class Found(NamedTuple):
    """Something personal: its place in the bytes of a text, and its value in the one spelling that is hashed.

    `name`: of a rule of many forms the one that it has.
    """

    begin: int
    end: int
    value: str
    name: str | None = None


# What is personal of a match; None if it is nothing.
type Check = Callable[[re.Match[bytes], Where], Found | None]


@dataclass(frozen=True)
class Rule:
    """What to look for in the windows of a sign.

    A text is read if it has the `part`; a window of it if it has `least_digits`, of which `least_number` are in one
    number, and one of the bytes that the rule `needs`. If there are `words`, in small letters, the pattern counts only
    where one of them stands in the `CONTEXT` before, and anywhere else what `elsewhere` matches. `name` tells rules of
    a kind apart in audits.
    """

    kind: PiiKind
    name: str
    sign: Sign
    pattern: re.Pattern[bytes]
    check: Check
    least_digits: int = 0
    words: re.Pattern[bytes] | None = None
    elsewhere: re.Pattern[bytes] | None = None
    least_number: int = 0
    needs: bytes = b""
    part: bytes = b""


def whole(match: re.Match[bytes], value: str | None = None) -> Found:
    """All of a match, by default with its text as the value."""
    return Found(match.start(), match.end(), match[0].decode("utf-8", "replace") if value is None else value)


def before(match: re.Match[bytes], size: int = CONTEXT) -> bytes:
    """The bytes before a match in its line."""
    return match.string[max(0, match.start() - size) : match.start()].rpartition(b"\n")[2]


_NO_DIGITS = bytes(sorted(set(range(256)) - set(b"0123456789")))


def digits_of(match: re.Match[bytes]) -> str:
    """The digits of a match."""
    return match[0].translate(None, _NO_DIGITS).decode()


# Words before a number that make it the number of a thing.
_NUMBERED = re.compile(
    rb"(?:order|invoice|ref(?:erence)?|isbn|issn|sku|part|serial|model|ticket|case|tracking|item|product|article|version|"
    rb"build|release|revision|rev|doi|pmid|patent|commit|bug|issue|batch|lot|catalog(?:ue)?|upc|ean|gtin|barcode|docket|imei|meid|"
    rb"rfc|chapter|section|page|figure|table|bestellung|rechnung|commande|facture|pedido)s?"
    rb"[\s:.#=-]*(?:(?:no|nr|num|number|id|code|key|n)\b[\s:.#=-]*){0,2}$",
    re.IGNORECASE,
)


def is_numbered(match: re.Match[bytes]) -> bool:
    """Whether the words before a number say that it is an order's, a book's or the like."""
    words = before(match, 40)
    return words.rstrip(b" \t\r\v\f:.#=-")[-1:].isalpha() and _NUMBERED.search(words) is not None


_DUMPED_BEHIND = re.compile(rb" [0-9a-f]{4}(?![\w-])")
_DUMPED_BEFORE = re.compile(rb"(?<![\w-])[0-9a-f]{4} $")


def is_dumped(match: re.Match[bytes]) -> bool:
    """Whether a match of groups of four digits has more of them beside it, as in a dump of memory."""
    if b" " not in match[0]:
        return False
    return (
        _DUMPED_BEHIND.match(match.string, match.end()) is not None
        or _DUMPED_BEFORE.search(before(match, 6)) is not None
    )


def is_bare_in_code(match: re.Match[bytes], where: Where) -> bool:
    """Whether a match is a number of source code: digits alone, in no quotes."""
    if not (where.is_code and match[0].isdigit()):
        return False
    quote = match.string[max(0, match.start() - 1) : match.start()]
    return quote not in (b'"', b"'", b"`") or match.string[match.end() : match.end() + 1] != quote
