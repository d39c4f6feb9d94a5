"""Numbers of bank accounts (IBAN) and payment cards.

An IBAN has its country's length and is 1 modulo 97 (ISO 13616, SWIFT's registry). A card's number is in an issuer's
range, of a length that it uses, and passes Luhn's check (ISO/IEC 7812).
"""

import re

from lifecycle.data.personal.checksums import luhn_valid, mod_97_valid
from lifecycle.data.personal.pii_rule import (
    Found,
    Rule,
    Sign,
    Where,
    before,
    digits_of,
    is_bare_in_code,
    is_dumped,
    is_numbered,
    whole,
)

_LENGTHS = {
    length: frozenset(countries.split())
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
}  # fmt: skip
_COUNTRY_LENGTH = {country: length for length, countries in _LENGTHS.items() for country in countries}
_GAP = rb"(?:[ -]|\xc2\xa0)?"
_GAPS = b" -\xc2\xa0"
_IBAN = re.compile(rb"(?<![A-Za-z0-9_])[A-Z]{2}\d\d(?:" + _GAP + rb"[A-Z0-9]){11,29}")
_CARD = re.compile(
    rb"(?<![\w.+-])(?=[1-68])(?:\d{4}([ -]|\xc2\xa0)\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -]|\xc2\xa0)\d{6}\2\d{4,5}|\d{12,19})"
    rb"(?!\w|[.-]\d)"
)
_ISSUERS = (  # beginnings, and numbers of digits
    (re.compile(r"4"), (16, 19)),  # Visa
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6(?:011|4[4-9]|5)"), (16, 19)),  # Discover
    (re.compile(r"3(?:0[0-5]|[689])"), (14, 16)),  # Diners Club
    (re.compile(r"35(?:2[89]|[3-8])"), (16,)),  # JCB
    (re.compile(r"62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"220[0-4]"), (16,)),  # Mir
)
_RARE_ISSUERS = (  # whose numbers many others look like: barcodes, for one
    (re.compile(r"4"), (13,)),  # Visa, until about 2000
    (re.compile(r"50|5[6-9]|6[3-9]"), range(12, 20)),  # Maestro
    (re.compile(r"1800|2131"), (15,)),  # JCB
)
_NAMED_CARD = re.compile(
    rb"card|visa|maestro|credit|debit|\bcc\b|\bpan\b|karte|carte|tarjeta|cart\xc3\xa3o|carta|kort", re.I
)


def _iban(match: re.Match[bytes], where: Where) -> Found | None:
    """The beginning of a match that has the country's length; what follows it is the next word."""
    length = _COUNTRY_LENGTH.get(match[0][:2].decode(), 0)
    code = match[0].translate(None, _GAPS)[:length].decode()
    if not code or len(code) < length or not mod_97_valid(code):
        return None
    end, size = match.start(), 0
    while size < length:
        size += match.string[end : end + 1].isalnum()
        end += 1
    return None if match.string[end : end + 1].isalnum() else Found(match.start(), end, code)


def _card(match: re.Match[bytes], where: Where) -> Found | None:
    digits = digits_of(match)
    if not luhn_valid(digits):
        return None
    issuers = (*_ISSUERS, *_RARE_ISSUERS) if _NAMED_CARD.search(before(match, 40)) else _ISSUERS
    is_issued = any(begins.match(digits) and len(digits) in sizes for begins, sizes in issuers)
    if not is_issued or is_bare_in_code(match, where) or is_dumped(match):
        return None
    return None if match[0].isdigit() and is_numbered(match) else whole(match, digits)


ACCOUNTS = (
    Rule("iban", "iban", Sign.IBAN, _IBAN, _iban),
    Rule("card", "card", Sign.DIGITS, _CARD, _card, least_digits=12, least_number=4),
)
