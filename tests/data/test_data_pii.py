"""Masking: what counts as personal, what must be left alone, source code that still parses, idempotence."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.config import PiiKind
from lifecycle.data.pii import SIGNS, luhn_valid, mask_pii

KINDS: tuple[PiiKind, ...] = ("email", "ip", "phone", "card")


def masked(text: str, format: str = "text") -> str:
    return mask_pii(text, KINDS, format)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.uni-x.de, please", "Write to EMAIL_ADDRESS, please"),
        ("<mailto:a_b@sub.domain.org>", "<mailto:EMAIL_ADDRESS>"),
        ("host 93.184.216.34:80 is up", "host IP_ADDRESS:80 is up"),
        ("at 2606:2800:220:1:248:1893:25c8:1946 or 2a00:1450:4001::5", "at IP_ADDRESS or IP_ADDRESS"),
        ("call +44 20 7946 0958 now", "call PHONE_NUMBER now"),
        ("call (212) 555-2368.", "call PHONE_NUMBER."),
        ("call 1-212-555-2368, or +4930123456789", "call PHONE_NUMBER, or PHONE_NUMBER"),
        ("Visa 4111 1111 1111 1111", "Visa CARD_NUMBER"),
        ("Amex 3782-822463-10005 or 378282246310005", "Amex CARD_NUMBER or CARD_NUMBER"),
    ],
)
def test_masks(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, root@localhost, x@y.invalid",  # reserved names
        "git clone git@host.org:owner/name.git",
        "127.0.0.1 10.1.2.3 192.168.1.12 192.0.2.17 255.255.255.0 224.0.0.251",  # nobody's
        "as in section 8.2.4.44, version 10.14.16.18 and pkg==12.34.56.78",
        "1.22.333.444 and 01.22.33.44 and 11.22.33.44.55",  # no addresses
        "the network 93.184.216.0/24 and 2001:4860:4860::/48",
        "::1 fe80::1 2001:db8::17 x[1::2] y[2000::3]",
        "(212) 555-0123",  # reserved for fiction
        "2024-11-24 12:30:45, pages 100-200-300, +1.2345678901234, pi 3.14159265358979",
        "4111 1111 1111 1112 and 1234567890123456",  # checksum, issuer
        "ISBN 978-3-16-148410-0, 0x4111111111111111",
    ],
)
def test_leaves_alone(text: str) -> None:
    assert masked(text) == text


def test_source_code_still_parses() -> None:
    source = (
        "@decorated.name\n"
        "def f(a, b, items):  # by jane@company.org\n"
        "    big = 4111111111111111\n"
        "    card = '4111111111111111'\n"
        "    where = '93.184.216.34'\n"
        "    return a@b.transpose + big +12345678901, items[1::2]\n"
    )
    result = masked(source, "code")
    ast.parse(result)
    assert "jane@company.org" not in result and "93.184.216.34" not in result
    assert "big = 4111111111111111" in result and "'CARD_NUMBER'" in result and "+12345678901" in result


def test_counts_by_kind_and_masks_only_the_kinds_asked_for() -> None:
    text = "a@b.de c@d.fr 93.184.216.34"
    assert mask_pii(text, KINDS, "text")[1] == {"pii_email": 2, "pii_ip": 1, "pii_phone": 0, "pii_card": 0}
    assert mask_pii(text, ("ip",), "text") == ("a@b.de c@d.fr IP_ADDRESS", {"pii_ip": 1})
    assert mask_pii(text, (), "text") == (text, {})


@given(st.text(alphabet="a@.:-+ ()0123456789fé\n", max_size=80), st.sampled_from(["text", "code"]))
def test_idempotent(text: str, format: str) -> None:
    once = masked(text, format)
    assert masked(once, format) == once


PERSONAL = (
    "4111 1111 1111 1111", "378282246310005", "3782-822463-10005", "+44 20 7946 0958", "(212) 555-2368", "212-555-2368",
    "+4930123456789", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "a_b@sub.domain.org",
)  # fmt: skip
PIECES = st.sampled_from(PERSONAL) | st.sampled_from("@.:+- 1fé\n") | st.from_regex(r"\d{1,5}", fullmatch=True)


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(alphabet="a@.:-+ ()0123456789fé\n", max_size=80))
def test_a_text_with_a_match_has_its_sign(text: str) -> None:
    for pattern, sign in SIGNS.items():
        for match in pattern.finditer(text):
            assert sign.search(match[0]), (pattern.pattern, match[0])
            assert sign.search(text)


@given(st.integers(0, 10**15), st.integers(1, 9))
def test_luhn_has_one_check_digit_and_finds_a_wrong_one(body: int, shift: int) -> None:
    valid = [digit for digit in range(10) if luhn_valid(f"{body}{digit}")]
    assert len(valid) == 1
    assert not luhn_valid(f"{body}{(valid[0] + shift) % 10}")
