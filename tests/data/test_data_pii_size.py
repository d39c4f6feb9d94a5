"""Masking takes time in proportion to a text, and tells valid phone numbers as libphonenumber does."""

import random
import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.personal import masking, phones, secrets
from lifecycle.data.personal.dialling import possible_number, valid_number
from lifecycle.data.personal.masking import find, mask, windows_of
from lifecycle.data.personal.pii_rule import Rule, Where

DIGITS = "".join(random.Random(7).choices("0123456789", k=20_000))


def grouped(size: int, gap: str) -> str:
    return gap.join(DIGITS[at : at + size] for at in range(0, 8_000, size))


HOSTILE = {
    "digits": DIGITS, "triples": grouped(3, " "), "cards": grouped(4, "-"), "ssns": grouped(9, "\n"),
    "wide blanks": grouped(4, "\u00a0"), "long numbers": "1 1 1 1 1 1 1 1 " + DIGITS, "hex": "9f3a" * 4000,
    "ats": "a@" * 4000, "dots": "1." * 4000, "codes": "+49 " * 2000, "zeros": "00 1 " * 1000, "colons": "2001:" * 4000,
    "hosts": "a" + "@b.de" * 1000, "spelt hosts": "a" + " (at) b.de" * 1000, "both": "a" + "@b.de (at) c.de" * 500,
    "phones": "030 1234567 " * 800, "dotted phones": "Tel 030 1234567." * 500, "named": "tel 12 34 56 78 9 " * 400,
    "ibans": "DE89 3704 0044 0532 0130 00 " * 800, "mails": "a@b.de " * 1500, "addresses": "ab://u:ppp@" * 1000,
    "assigned": "token=1" * 1500, "tokens": "-pypi-AgE" * 2000, "web tokens": "-eyJ1" * 3000,
    "blocks": "-----BEGIN PRIVATE KEY-----" * 800,
}  # fmt: skip


@contextmanager
def counted() -> Generator[list[int]]:
    """The calls that are made, and the bytes of the texts in which rules look."""
    work = [0, 0]
    find = masking.find

    def count(frame: FrameType, event: str, argument: object) -> None:
        work[0] += 1

    def look(text: bytes, windows: list[masking.Window], where: Where) -> list[masking.Span]:
        work[1] += len(text)
        return find(text, windows, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "find", look)
        sys.setprofile(count)
        try:
            yield work
        finally:
            sys.setprofile(None)


def work_of(text: str) -> list[int]:
    windows = dict(windows_of(pa.array([text]))).get(0, [])
    with counted() as work:
        mask(text.encode(), windows, Where(False, "de"), ())
    return work


@pytest.mark.parametrize("name", HOSTILE)
def test_work_grows_with_the_text(name: str) -> None:
    text = HOSTILE[name]
    work_of(text)  # loads the plans of countries
    (calls, size), (calls_for_two, size_of_two) = work_of(text), work_of(text + text)
    assert calls_for_two < 2.3 * calls + 2000 and size_of_two < 3.5 * size
    assert calls < 200 * len(text) and size <= 6 * len(text.encode())


@pytest.mark.parametrize(("size", "gap", "most"), [(2, " ", 5), (4, " ", 13), (6, " 0.", 3)])
def test_a_byte_of_a_table_of_numbers_takes_few_calls(size: int, gap: str, most: int) -> None:
    table = grouped(size, gap)
    work_of(table)
    assert work_of(table)[0] < most * len(table)  # 12.7, 22.6 and 7.4 when each number was read by each rule


def test_a_byte_of_what_begins_like_an_account_takes_few_calls() -> None:
    text = "GB12 " * 1000
    assert work_of(text)[0] < 10 * len(text)  # 45 when a match was read a byte at a time


def test_a_number_of_megabytes_is_looked_at_once() -> None:
    text = "1 1 1 1 1 1 1 1 " + "7" * 3_000_000
    assert sum(work_of(text)) < 5000 + len(text)


class Searched:
    """A rule's pattern that notes how many bytes it is searched in at most."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern, self.size = pattern, 0

    def search(self, text: bytes, begin: int, end: int) -> re.Match[bytes] | None:
        self.size += end - begin
        return self.pattern.search(text, begin, end)


def test_behind_its_words_a_rule_reads_no_place_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: dict[Rule, Any] = {rule: Searched(rule.pattern) for rule in masking.RULES if rule.words is not None}
    rules = [replace(rule, pattern=searched[rule]) if rule in searched else rule for rule in masking.RULES]
    monkeypatch.setattr(masking, "RULES", rules)
    text = "bsn 12 34 56 78 9 " * 2000
    windows = dict(windows_of(pa.array([text])))[0]
    assert not find(text.encode(), windows, Where(False, "en"))
    assert sum(pattern.size for pattern in searched.values()) < 1.1 * len(text)


def test_values_in_a_row_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    monkeypatch.setattr(secrets, "entropy", lambda value: judged.append(value) or 0.0)
    for text in ("pwd:7:" * 500, "secretsecret3=" * 300, "-pypi-AgE3" * 300):
        judged.clear()
        work_of(text)
        assert 0 < len(judged) < 100


def test_headers_of_web_tokens_in_a_row_are_read_once() -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        work_of(text)
        return time.process_time() - start

    of_headers, of_words = (min(seconds(text * 4000) for _ in range(3)) for text in ("-eyJ1", "-eyK1"))
    assert of_headers < 4 * of_words  # 15 when each was read to the end


REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)
PREFIXES = ("", "", "0", "1", "8", "00", "011", "06", "15")


@st.composite
def dialled(draw: st.DrawFn) -> tuple[str, str | None]:
    region = draw(st.sampled_from(REGIONS))
    example = phonenumbers.example_number_for_type(region, draw(st.integers(0, 8)))
    digits = draw(st.text("0123456789", min_size=7, max_size=16))
    if example is not None:
        own = phonenumbers.national_significant_number(example)
        digits = own[: draw(st.integers(1, len(own)))] + digits
        digits = digits[: len(own)]
    code = str(phonenumbers.country_code_for_region(region))
    behind = draw(st.sampled_from(PREFIXES)) + digits
    return draw(st.sampled_from([(behind, region), (code + behind, region), (f"00{code}{behind}", "DE"),
                                 (f"011{code}{behind}", "US"), (f"+{code}{behind}", None)]))  # fmt: skip


@given(dialled())
def test_what_can_be_dialled_is_the_number_that_libphonenumber_reads(asked: tuple[str, str | None]) -> None:
    number, region = asked
    valid = valid_number(number, *(() if region is None else ((region,),)))
    possible = possible_number(number, region or "DE")
    try:
        read = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        assert (valid, possible) == (None, None)
        return
    spelt = phonenumbers.format_number(read, phonenumbers.PhoneNumberFormat.E164)
    is_possible = phonenumbers.is_possible_number_with_reason(read) == phonenumbers.ValidationResult.IS_POSSIBLE
    assert valid == (spelt if phonenumbers.is_valid_number(read) else None)
    assert possible == (spelt if is_possible else None)


@pytest.mark.parametrize(
    ("number", "regions", "expected"),
    [
        ("+9991234567", (), None),  # no country
        ("+12125552", (), None),  # too short
        ("0000000000", ("DE",), None),
        ("+80012345678", (), "+80012345678"),  # of no region
        ("2125552368", ("GB", "US"), "+12125552368"),  # the first in which it is one
        ("4641234", ("AG",), "+12684641234"),  # an area's code in the place of no prefix
        ("+390612345678", (), "+390612345678"),  # zeros that are a part of it
        ("+441624756789", (), "+441624756789"),  # of a region that its beginning names
        ("493012345678", ("DE",), "+493012345678"),  # a country's code without `+`
    ],
)
def test_numbers_that_can_be_dialled(number: str, regions: tuple[str, ...], expected: str | None) -> None:
    assert valid_number(number, regions) == expected


def test_numbers_that_come_again_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(phones, "valid_number", lambda dialled, *regions: asked.append(dialled))
    work_of("00 12 34 5 " * 500)
    assert 0 < len(asked) < 200
