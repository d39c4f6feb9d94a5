"""Personal data: e-mail addresses, IP addresses, phone and card numbers are replaced by a word that names their kind.

Left alone, because they identify nobody: addresses and numbers reserved for documentation (RFC 2606 domains,
555-01xx), private, loopback and documentation networks, networks with a prefix length, version and section numbers
(three one-digit parts of four, or a word such as "version" before them), numbers that fail the card checksum (Luhn,
ISO/IEC 7812) or are outside the issuers' ranges.
The masks are identifiers, and bare runs of digits in source code are left alone unless quoted, so that source code
still parses. Masking twice changes nothing more.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from lifecycle.data.config import DataConfig, PiiKind
from lifecycle.data.steps import DocumentStep

MASKS: dict[PiiKind, str] = {
    "email": "EMAIL_ADDRESS", "ip": "IP_ADDRESS", "phone": "PHONE_NUMBER", "card": "CARD_NUMBER",
}  # fmt: skip

_EMAIL = re.compile(
    r"(?<![\w.+%@-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24})\b",
    re.ASCII,
)
_RESERVED_DOMAIN = re.compile(r"[@.](?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost|local)$", re.IGNORECASE)
_REMOTE_PATH = re.compile(r":[\w/~]")  # git@host.org:owner/name
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w|/\d{1,2}(?![\w/.]))", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]|/\d{1,3}(?![\w/.]))", re.ASCII)
_VERSION_BEFORE = re.compile(r"(?:\bv|\bver|version|release|revision|build|[=~<>!]=)[\s:=\"'()]*$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ .-]\(?\d{1,4}\)?){2,6}"  # +44 20 7946 0958
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[.-]\d{4}"  # (212) 555-2368
    r"|(?:1-)?\d{3}-\d{3}-\d{4}"  # 212-555-2368
    r")(?![\w]|[.-]\d)",
    re.ASCII,
)
_BARE_PHONE = re.compile(r"(?<![\w.+/-])\+[1-9]\d{9,14}(?![\w]|\.\d)", re.ASCII)  # E.164
_FICTIONAL_PHONE = re.compile(r"555[ .-]?01\d\d$")
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{5}|\d{13,19})(?![\w]|[.-]\d)", re.ASCII
)
# Issuer ranges: Visa, Mastercard (two), American Express, Discover, Diners, JCB.
_ISSUER = re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6(?:011|4[4-9]|5)|3(?:0[0-5]|[689])|35")
_QUOTES = "\"'`"
# For each pattern, a cheaper one that every match contains and few texts do. Searching for it takes at most a tenth of
# the time.
SIGNS = {
    _EMAIL: re.compile(r"@(?<=[\w.+%-]@)[A-Za-z0-9]", re.ASCII),
    _IPV4: re.compile(r"\.\d{1,3}\.", re.ASCII),
    _IPV6: re.compile(r":[0-9A-Fa-f]{0,4}:"),
    _PHONE: re.compile(r"[+.-](?:(?<=\+)\d|\d{4})", re.ASCII),
    _BARE_PHONE: re.compile(r"\+\d", re.ASCII),
    _CARD: re.compile(r"\d\d\d\d[ -]?\d\d\d\d", re.ASCII),
}

_COUNTS = tuple(f"pii_{kind}" for kind in MASKS)


@dataclass(frozen=True)
class MaskPii:
    """`text` and the strings in `meta`, masked, and how many of each kind were masked in `text`.

    The count of a kind that is not configured is null.
    """

    kinds: tuple[PiiKind, ...]
    columns: ClassVar[pa.Schema] = pa.schema([
        ("text", pa.string()), ("meta", pa.string()), *((name, pa.int64()) for name in _COUNTS),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Column `text`, masked, with a count for each kind of PII."""
        masked = [
            mask_pii(text, self.kinds, format)
            for text, format in zip(batch["text"].to_pylist(), batch["format"].to_pylist(), strict=True)
        ]
        metas = map(self._mask_meta, batch["meta"].to_pylist())
        rows = [{"text": text, "meta": meta, **counts} for (text, counts), meta in zip(masked, metas, strict=True)]
        return pa.RecordBatch.from_pylist(rows, schema=self.columns)

    def _mask_meta(self, meta: str) -> str:
        values = json.loads(meta)
        masked = {
            key: mask_pii(value, self.kinds, "text")[0] if isinstance(value, str) else value
            for key, value in values.items()
        }
        return json.dumps(masked, sort_keys=True)


def pii_step(config: DataConfig) -> DocumentStep:
    """The step `pii`; it removes nothing."""
    return DocumentStep("pii", MaskPii(config.pii), edits=_COUNTS, settings="data.pii")


def mask_pii(text: str, kinds: Iterable[PiiKind], format: str) -> tuple[str, dict[str, int]]:
    """Returns the text with these kinds masked, and how many of each were masked."""
    counts = {f"pii_{kind}": 0 for kind in kinds}
    has_changed = True
    while has_changed:  # a mask can expose a number next to the replaced text
        has_changed = False
        for kind in counts:
            text, count = _MASKERS[kind](text, format == "code")
            counts[kind] += count
            has_changed = has_changed or count > 0
    return text, counts


def luhn_valid(digits: str) -> bool:
    """Whether a number's last digit is its check digit by Luhn's formula (ISO/IEC 7812-1, annex B)."""
    total = 0
    for at, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + at % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _mask(
    text: str, pattern: re.Pattern[str], kind: PiiKind, is_personal: Callable[[re.Match[str]], bool]
) -> tuple[str, int]:
    """Replaces the matches that are personal; returns the text and their number."""
    if not SIGNS[pattern].search(text):
        return text, 0
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if not is_personal(match):
            return match[0]
        count += 1
        return MASKS[kind]

    return pattern.sub(replace, text), count


def _mask_emails(text: str, is_code: bool) -> tuple[str, int]:
    del is_code
    return _mask(text, _EMAIL, "email", _is_personal_email)


def _mask_ips(text: str, is_code: bool) -> tuple[str, int]:
    del is_code
    text, fours = _mask(text, _IPV4, "ip", _is_personal_ipv4)
    text, sixes = _mask(text, _IPV6, "ip", _is_personal_ipv6)
    return text, fours + sixes


def _mask_phones(text: str, is_code: bool) -> tuple[str, int]:
    text, count = _mask(text, _PHONE, "phone", _is_personal_phone)
    if is_code:
        return text, count
    text, bare = _mask(text, _BARE_PHONE, "phone", _is_personal_phone)
    return text, count + bare


def _mask_cards(text: str, is_code: bool) -> tuple[str, int]:
    def is_card(match: re.Match[str]) -> bool:
        digits = re.sub(r"\D", "", match[0])
        if is_code and len(digits) == len(match[0]) and not _is_quoted(match):
            return False
        return 13 <= len(digits) <= 19 and bool(_ISSUER.match(digits)) and luhn_valid(digits)

    return _mask(text, _CARD, "card", is_card)


_MASKERS: dict[str, Callable[[str, bool], tuple[str, int]]] = {
    "pii_email": _mask_emails, "pii_ip": _mask_ips, "pii_phone": _mask_phones, "pii_card": _mask_cards,
}  # fmt: skip


def _is_personal_email(match: re.Match[str]) -> bool:
    return not _RESERVED_DOMAIN.search(match[0]) and not _REMOTE_PATH.match(match.string, match.end())


def _is_personal_ipv4(match: re.Match[str]) -> bool:
    parts = match[0].split(".")
    if sum(len(part) == 1 for part in parts) >= 3:  # 1 in 5,000 addresses, nearly all version numbers
        return False
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return False
    address = ipaddress.IPv4Address(match[0])
    if not address.is_global or address.is_multicast:
        return False
    return not _VERSION_BEFORE.search(match.string[max(0, match.start() - 24) : match.start()])


def _is_personal_ipv6(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.IPv6Address(match[0])
    except ValueError:
        return False
    # At least three groups: `2000::3` is also a slice in source code.
    return address.is_global and sum(map(bool, match[0].split(":"))) >= 3


def _is_personal_phone(match: re.Match[str]) -> bool:
    return 10 <= sum(map(str.isdigit, match[0])) <= 15 and not _FICTIONAL_PHONE.search(match[0])


def _is_quoted(match: re.Match[str]) -> bool:
    before, after = match.string[max(0, match.start() - 1) : match.start()], match.string[match.end() : match.end() + 1]
    return bool(before) and before == after and before in _QUOTES
