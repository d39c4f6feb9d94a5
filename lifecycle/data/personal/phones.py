"""Phone numbers that can be dialled, by the plans of all countries (Google's libphonenumber).

A number counts with its country's code; in North America's spelling with brackets or dashes; in national spelling,
which many other numbers have too, if it begins with a 0 and is valid where the document's language is spoken; and any
other behind a word such as "Tel.", if it is valid in a country that people write from. Fictional numbers (in the
USA 555-01xx, in Britain 01632 960xxx and 07700 900xxx) are nobody's.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from lifecycle.data.personal.dialling import possible_number, valid_number
from lifecycle.data.personal.pii_rule import Found, Rule, Sign, Where, before, is_bare_in_code, is_numbered

_GAP = rb"(?: ?/ ?| - |[ .-]|\xc2\xa0|\xe2\x80[\x89\x90-\x93\xaf])"
_GROUP = rb"\(?\d{1,18}+\)?"  # more digits than a number has, and no more: some texts are one number of megabytes
_EXTENSION = rb"(?P<extension> ?(?:x|ext\.?|#) ?\d{1,6})?"
_GROUPS = _GROUP + rb"(?:" + _GAP + rb"?" + _GROUP + rb"){0,8}" + _EXTENSION
_START, _END = rb"(?<![\w+/-])", rb"(?!\w|[.-]\d)"
_INTERNATIONAL = re.compile(rb"(?<![\w+])(?:\(?\+ ?|00" + _GAP + rb"?)(?=\(?[1-9])" + _GROUPS + rb"(?!\w)")
_DASH = rb"(?:[ .-]|\xe2\x80[\x90-\x93])"
_AMERICAN = re.compile(
    _START + rb"(?<!\d\.)(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}" + _DASH + rb")\d{3}" + _DASH + rb"\d{4}" + _EXTENSION + _END
)  # fmt: skip
_NATIONAL = re.compile(_START + _GROUPS + _END)
_NATIONAL_UNNAMED = re.compile(_START + rb"(?=\(?0[1-9])" + _GROUPS + _END)
# Words before a phone number that say what it is, and those that may stand between.
_WORDS = frozenset((
    "tel", "phone", "telephone", "telefon", "telefono", "teléfono", "tél", "téléphone", "fax", "mobile", "mobil",
    "cell", "cellphone", "handy", "call", "dial", "whatsapp", "sms", "rufnummer", "hotline", "ph", "cel", "celular",
    "móvil", "portable", "telefoon", "puh", "tlf", "telefone", "reach", "тел", "телефон", "телефону", "телефона", "моб",
    "мобильный", "мобільний", "telefonnummer", "telefonnr", "handynummer", "mobilnummer", "mobilnr", "mobiltelefon",
    "telefax", "telefoonnummer", "puhelin", "tfno", "teléfonos", "cellulare", "telefonu", "komórka", "telefonszám",
    "τηλ", "τηλέφωνο", "טלפון", "נייד", "هاتف", "جوال", "تلفن", "موبایل", "โทร", "โทรศัพท์", "sđt", "電話", "电话",
))  # fmt: skip
# The same where words are joined, or `\w` is not all of a letter; and a sign.
_ENDS = (
    "电话", "電話", "手机", "手機", "电话号码", "电话号", "手机号码", "手机号", "電話番号", "携帯", "携帯番号",
    "連絡先", "전화", "전화번호", "휴대폰", "핸드폰", "연락처", "फ़ोन", "फोन", "मोबाइल", "điện thoại", "☎",
)  # fmt: skip
_BETWEEN = frozenset((
    "me", "us", "him", "her", "them", "at", "on", "is", "no", "nr", "num", "number", "the", "our", "my", "your", "his",
    "office", "direct", "line", "now", "today", "free", "toll", "or", "to", "work", "home", "business", "customer",
    "service", "contact",
))  # fmt: skip
_OWNERS = frozenset(("my", "our", "your", "his", "her", "contact", "work", "home"))  # of a number
_WORD = re.compile(r"\w+")


def _small(word: str) -> Iterator[str]:
    """Patterns of a word in small letters, but for those that ASCII has not: they may be capitals. Each begins
    with a byte, so that a search can skip all others."""
    rest = "".join(letter if letter.isascii() else f"(?:{letter}|{letter.upper()})" for letter in word[1:])
    yield word[0] + rest
    if not word[0].isascii() and word[0].isalpha():
        yield word[0].upper() + rest


# One of them is in each line that names a phone.
_NAMING = re.compile("|".join(form for word in sorted({*_WORDS, *_ENDS, "number"}) for form in _small(word)).encode())
# An area code with the 0 that leads out of an area, and what is dialled in it.
_TRUNK = re.compile(rb"\(?0[1-9](?=(?:\D*\d){7})\d{0,4}\)?(?!\d)" + _GAP + rb"?\(?\d")
# Decimals, postcodes in the USA, dates, and differences.
_OTHER = re.compile(rb"\d+\.\d+|\d{5}-\d{4}|\d\d?([/.-])\d\d?\1\d{4}(?:\D.*)?|\d+ - \d+ - .*")
_FICTIONAL = re.compile(r"1?\d{3}55501\d\d$|44(?:1632960|7700900)\d{3}$")
_REGIONS = {
    "en": ("GB", "IE", "AU", "NZ", "ZA"), "de": ("DE", "AT", "CH"), "fr": ("FR", "BE", "CH"), "it": ("IT", "CH"),
    "nl": ("NL", "BE"), "sv": ("SE",), "fi": ("FI",), "tr": ("TR",), "ja": ("JP",), "ko": ("KR",), "uk": ("UA",),
    "hi": ("IN",), "id": ("ID",), "vi": ("VN",), "th": ("TH",), "he": ("IL",), "hr": ("HR",), "sr": ("RS",),
    "bg": ("BG",), "ro": ("RO",), "sk": ("SK",), "sl": ("SI",), "fa": ("IR",), "zh": ("CN", "TW"),
}  # fmt: skip
_NAMED_REGIONS = (
    "US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "IE", "AU", "IN", "BR", "MX", "PT", "PL", "SE", "NO",
    "DK", "FI", "CZ", "RU", "UA", "TR", "JP", "CN", "KR",
)  # fmt: skip
_ZEROS_LEAD_ABROAD = ("DE",)  # a region where two do
_DIGITS = b"0123456789"
_NOT_DIALLED, _NO_NUMBER = (bytes(sorted(set(range(256)) - set(_DIGITS + other))) for other in (b"+", b")"))
LEAST, MOST = 7, 15  # digits, by ITU-T E.164


# In tables and floods the same numbers come again and again.
@lru_cache(4096)
def _longest_valid(own: bytes, extension: bytes, most: int, *groups: tuple[str, ...]) -> tuple[int, str] | None:
    """The end of the longest valid number that begins a match, of `most` ends that are tried, and the number as E.164
    spells it: numbers that follow a phone's may be no part of it."""
    for end, dialled in islice(_prefixes(own, extension), most):
        value = valid_number(dialled, *groups)
        if value and not _FICTIONAL.search(value.removeprefix("+")):
            return end, value
    return None


def _prefixes(own: bytes, extension: bytes) -> Iterator[tuple[int, str]]:
    """Ends of a match behind one of its numbers, from the last, and the digits and `+` up to there, without its
    extension."""
    number, end = own.removesuffix(extension), len(own)
    while len(dialled := number.translate(None, _NOT_DIALLED).decode()) >= LEAST:
        if LEAST <= len(dialled) - dialled.startswith("+") <= MOST + 2:
            yield end, dialled
        number = number.rstrip(b")").rstrip(_DIGITS).rstrip(_NO_NUMBER)
        end = len(number)


def _first_valid(match: re.Match[bytes], *groups: tuple[str, ...], most: int = 9) -> Found | None:
    found = _longest_valid(match[0], match["extension"] or b"", most, *groups)
    return None if found is None else Found(match.start(), match.start() + found[0], found[1])


def _possible(match: re.Match[bytes], region: str) -> Found | None:
    """A match that is as long as its country's numbers, all of it."""
    for end, dialled in islice(_prefixes(match[0], match["extension"] or b""), 1):
        value = possible_number(dialled, region)
        if value and not _FICTIONAL.search(value.removeprefix("+")):
            return Found(match.start(), match.start() + end, value)
    return None


def _international(match: re.Match[bytes], where: Where) -> Found | None:
    leads_by_zeros = match[0][:1] == b"0"
    if (where.is_code and match[0][1:].isdigit()) or (leads_by_zeros and match[0].isdigit() and not _is_named(match)):
        return None
    found = _first_valid(match, _ZEROS_LEAD_ABROAD)
    # Behind such a word a number that is as long as its country's is one, even if it was mistyped or is new.
    return _possible(match, *_ZEROS_LEAD_ABROAD) if found is None and _is_named(match) else found


def _american(match: re.Match[bytes], where: Where) -> Found | None:
    is_written = b"(" in match[0] or b"-" in match[0] or b"." in match[0] or b"\xe2" in match[0]
    if (not is_written or is_numbered(match)) and not _is_named(match):
        return None
    return _first_valid(match, ("US",))


def _national(match: re.Match[bytes], where: Where) -> Found | None:
    is_named = _is_named(match)
    if not is_named and (_TRUNK.match(match[0]) is None or is_numbered(match) or _goes_on(match, where, b" .-")):
        return None
    if _goes_on(match, where, b".") or is_bare_in_code(match, where) or _OTHER.fullmatch(match[0]):
        return None
    regions = _REGIONS.get(where.language, ())
    return _first_valid(match, regions, _NAMED_REGIONS) if is_named else _first_valid(match, regions, most=1)


def _goes_on(match: re.Match[bytes], where: Where, gaps: bytes) -> bool:
    """Whether a match is the rest of a longer number that is no phone's, behind one of some bytes."""
    digit, gap = match.start() - 2, match.start() - 1
    return digit >= where.done and match.string[digit : digit + 1].isdigit() and match.string[gap] in gaps


def _is_named(match: re.Match[bytes]) -> bool:
    """Whether the words before a number say that it is a phone's."""
    nearby = before(match, 40)
    last = nearby.rstrip(b" .-/()")[-1:]
    if not last or last.isdigit():  # the last word is a number, as in a table of them
        return False
    line = nearby.decode("utf-8", "ignore").lower()
    words = _WORD.findall(line)[-4:]
    while words:
        word = words.pop()
        if word in _WORDS or (word == "number" and words and words[-1] in _OWNERS and f"{words[-1]} number" in line):
            return True
        if word not in _BETWEEN:
            break
    return line.rstrip(" :\uff1a.-(").endswith(_ENDS)


PHONES = (
    Rule("phone", "international", Sign.DIGITS, _INTERNATIONAL, _international, LEAST),
    Rule("phone", "american", Sign.DIGITS, _AMERICAN, _american, 10, least_number=4),
    Rule("phone", "national", Sign.DIGITS, _NATIONAL, _national, LEAST, _NAMING, _NATIONAL_UNNAMED),
)
