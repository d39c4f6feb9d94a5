"""Masking: what counts as personal, what must be left alone, source code that still parses, idempotence, audits."""

import ast
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from document_tables import data_config, judged, raw
from hypothesis import example, given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.data.config import PiiKind
from lifecycle.data.personal import masking
from lifecycle.data.personal.masking import MASKS, Span, Window, find, mask, windows_of
from lifecycle.data.personal.national_ids import _is_date
from lifecycle.data.personal.pii import KINDS, MaskPii, pii_step
from lifecycle.data.personal.pii_rule import Sign, Where
from lifecycle.data.personal.places import masked_places
from lifecycle.data.web_names import address_hash, host_of


def look(
    text: str, format: str = "text", language: str = "en", kept: tuple[PiiKind, ...] = ()
) -> tuple[str, list[Span]]:
    windows = dict(windows_of(pa.array([text]))).get(0, [])
    result, spans = mask(text.encode(), windows, Where(format == "code", language), kept)
    return result.decode(), spans


def masked(text: str, format: str = "text", language: str = "en") -> str:
    return look(text, format, language)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.uni-x.de, please", "Write to EMAIL_ADDRESS, please"),
        ("<mailto:a_b@sub.domain.org>", "<mailto:EMAIL_ADDRESS>"),
        ("an jörg.müller@web.de, 联系foo@bar.org", "an EMAIL_ADDRESS, 联系EMAIL_ADDRESS"),
        ("jane [at] company (dot) org or jane(at)company.org", "EMAIL_ADDRESS or EMAIL_ADDRESS"),
        ("a@b.de@c.de (at) d.de, a@b.de@example.com", "EMAIL_ADDRESS, EMAIL_ADDRESS@example.com"),
        ("host 93.184.216.34:80 is up", "host IP_ADDRESS:80 is up"),
        ("from 93.18.2.1", "from IP_ADDRESS"),
        ("at 2606:2800:220:1:248:1893:25c8:1946 or 2a00:1450:4001::5", "at IP_ADDRESS or IP_ADDRESS"),
        ("call +44 20 7946 0958 now", "call PHONE_NUMBER now"),
        ("call (212) 555-2368.", "call PHONE_NUMBER."),
        ("call 1-212-555-2368, or +4930123456789", "call PHONE_NUMBER, or PHONE_NUMBER"),
        ("+49 (0)30 123456 and 0049 30 123456", "PHONE_NUMBER and PHONE_NUMBER"),
        ("Tel.: 030 / 123 456 78, Fax 212 555 2368", "Tel.: PHONE_NUMBER, Fax PHONE_NUMBER"),
        (
            "212.555.2368 or 212\u00a0555\u20112368 cell 2125552368",
            "PHONE_NUMBER or 212\u00a0555\u20112368 cell PHONE_NUMBER",
        ),
        ("07911 123456 or 020 7946 0958", "PHONE_NUMBER or PHONE_NUMBER"),
        ("Visa 4111 1111 1111 1111", "Visa CARD_NUMBER"),
        ("Amex 3782-822463-10005 or 378282246310005", "Amex CARD_NUMBER or CARD_NUMBER"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND", "IBAN IBAN_NUMBER AND"),
        ("GB29NWBK60161331926819, NO93 8601 1117 947", "IBAN_NUMBER, IBAN_NUMBER"),
    ],
)
def test_masks(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, root@localhost, x@y.invalid",  # reserved names
        "git clone git@host.org:owner/name.git and ssh://git@host.org/owner/name",
        "image@2x.png, getty@tty1.service, lodash@4.17.21, @handle",
        "127.0.0.1 10.1.2.3 192.168.1.12 192.0.2.17 198.51.100.9 203.0.113.77 255.255.255.0 224.0.0.251",  # nobody's
        "as in section 8.2.4.44, version 10.14.16.18 and pkg==12.34.56.78",
        "1.22.333.444 and 01.22.33.44 and 11.22.33.44.55",  # no addresses
        "the network 93.184.216.0/24 and 2001:4860:4860::/48",
        "::1 fe80::1 2001:db8::17 3fff::1:2:3 x[1::2] y[2000::3] 12:34:56 aa:bb:cc:dd:ee:ff",
        "(212) 555-0123 and +1 212 555 0123",  # reserved for fiction
        "2024-11-24 12:30:45, pages 100-200-300, +1.2345678901234, pi 3.14159265358979, 0.3333333333",
        "Order no. 212-555-2368, ISBN 0-306-40615-2, (555) 123-4567, company registration number is 07496944",
        "MA 02110-1301, 1.000.000.000, 1,234,567,890, 20241124123045, 1732451445123",
        "4111 1111 1111 1112 and 1234567890123456",  # checksum, issuer
        "tracking number 4539578763621486",
        "ISBN 978-3-16-148410-0, 0x4111111111111111, 550e8400-e29b-41d4-a716-446655440000",
        "DE89 3704 0044 0532 0130 01, GB29NWBK6016133192681, AB12CDEF",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709 and sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "000-12-3456, 666-12-3456, 987-66-4320, part 123-45-6788",
        "http://fred:secret@example.com:8080/, token = os.environ['TOKEN_1'], api_key = 'your-api-key-1234567890'",
        "password: ${DB_PASSWORD1}, the token: access_token_v2, secret = my_secret_value_2",
        "-----BEGIN CERTIFICATE-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n-----END CERTIFICATE-----",
    ],
)
def test_leaves_alone(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "word",
    [
        "手机\uff1a",
        "联系电话 ",
        "携帯 ",
        "연락처: ",
        "मोबाइल: ",
        "Điện thoại: ",
        "טלפון: ",
        "هاتف: ",
        "Handynummer: ",
        "Τηλ. ",
    ],
)
def test_words_of_many_languages_say_that_a_number_is_a_phones(word: str) -> None:
    assert masked(f"{word}138 1234 5678", language="zh") == f"{word}PHONE_NUMBER"
    assert masked(f"{word}x 138 1234 5678", language="zh") == f"{word}x 138 1234 5678"


# Numbers that the authorities publish as examples, or that their rules make.
@pytest.mark.parametrize(
    ("rule", "number"),
    [
        ("us_ssn", "536-22-8145"), ("us_ssn", "SSN: 536228145"), ("us_itin", "912-70-1234"),
        ("uk_nino", "AB 12 34 56 C"), ("uk_nino", "AB123456C"), ("uk_nhs", "NHS 943 476 5919"),
        ("de_tax_id", "Steuer-ID 86 095 742 719"),
        ("fr_nir", "2 55 08 14 168 025 38"), ("fr_nir", "255081416802538"), ("es_dni", "12345678Z"),
        ("es_dni", "X-1234567-L"), ("it_fiscal_code", "RSSMRA85T10A562S"), ("in_aadhaar", "2345 6789 0124"),
        ("br_cpf", "529.982.247-25"), ("br_cpf", "CPF 52998224725"), ("pl_pesel", "PESEL 44051401359"),
        ("nl_bsn", "BSN 111222333"), ("se_personal", "811228-9874"), ("fi_personal", "131052-308T"),
        ("no_birth", "29029600013"), ("be_national", "85.07.30-033.28"), ("ch_insured", "756.9217.0769.85"),
        ("ca_sin", "SIN 046 454 286"), ("au_tax_file", "TFN 123 456 782"), ("cn_resident", "11010519491231002X"),
        ("kr_resident", "900101-1234568"), ("mx_curp", "HEGG560427MVZRRL04"), ("tr_identity", "T.C. 10000000146"),
        ("ro_personal", "CNP 1800101221144"), ("cl_rut", "12.345.678-5"), ("cl_rut", "RUT 30686957-4"),
        ("ar_cuit", "20-12345678-6"), ("sg_nric", "S1234567D"), ("sg_nric", "G1234567X"),
        ("hk_identity", "A123456(3)"), ("hk_identity", "AB987654(3)"), ("tw_identity", "身分證 A123456789"),
        ("jp_individual", "マイナンバー 1234 5678 9018"), ("cz_birth", "736028/5163"),
        ("ru_snils", "112-233-445 95"), ("za_identity", "ID number 8001015009087"), ("dk_cpr", "CPR 070761-4286"),
        ("pt_tax", "NIF 123 456 789"), ("ie_pps", "PPS 1234567T"), ("ie_pps", "PPSN 1234567FA"),
    ],
)  # fmt: skip
def test_numbers_of_persons(rule: str, number: str) -> None:
    text, spans = look(f"see {number}, thanks")
    assert [span.rule for span in spans] == [rule], text
    assert text.endswith("NATIONAL_ID, thanks")
    last = max(at for at, character in enumerate(number) if character.isdigit())
    if rule not in ("us_ssn", "us_itin", "uk_nino", "dk_cpr"):  # no check digit
        wrong = number[:last] + str((int(number[last]) + 1) % 10) + number[last + 1 :]
        assert not [span for span in look(f"see {wrong}, thanks")[1] if span.rule == rule]


DRAWN = "f3Kd92LmPq8sT1vXz0aB7cEgHi4JkNoQrSuVwYlM5n6ZtxWyGhFjDpRbCaU"
KEYS = {
    "aws_access_key": "AKIAQ3EGRIL7ZB2C5XKT", "github": "ghp_" + DRAWN[:36], "gitlab": "glpat-" + DRAWN[:20],
    "slack": "xoxb-123456789012-" + DRAWN[:24], "google": "AIza" + DRAWN[:35], "stripe": "sk_live_" + DRAWN[:24],
    "openai": "sk-proj-" + DRAWN[:48], "anthropic": "sk-ant-api03-" + (DRAWN + DRAWN)[:95],
    "npm": "npm_" + DRAWN[:36], "hugging_face": "hf_" + DRAWN[:34], "telegram": "123456789:AA" + DRAWN[:33],
    "sendgrid": f"SG.{DRAWN[:22]}.{DRAWN[:43]}",
    "json_web_token": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{DRAWN[:43]}",
}  # fmt: skip


@pytest.mark.parametrize("rule", KEYS)
def test_keys_of_providers(rule: str) -> None:
    text, spans = look(f"use {KEYS[rule]}, then")
    assert (text, [span.rule for span in spans]) == ("use SECRET_KEY, then", [rule])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"API_KEY={DRAWN[:32]}", "API_KEY=SECRET_KEY"),
        (f'{{"client_secret": "{DRAWN[:24]}"}}', '{"client_secret": "SECRET_KEY"}'),
        ("password: Tr0ub4dor&3x", "password: SECRET_KEY"),
        (f"Authorization: Bearer {DRAWN[:40]}", "Authorization: Bearer SECRET_KEY"),
        ("postgres://bob:s3cr3tpw@db.host.org/x", "postgres://bob:SECRET_KEY@db.host.org/x"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----\nb", "a\nSECRET_KEY\nb"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1rZXktdjEA\\n cut off", "SECRET_KEY\\n cut off"),
    ],
)
def test_other_secrets(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_source_code_still_parses() -> None:
    source = (
        "@decorated.name\n"
        "def f(a, b, items):  # by jane@company.org\n"
        "    big = 4111111111111111\n"
        "    card = '4111111111111111'\n"
        "    where = '93.184.216.34'\n"
        f"    api_key = '{DRAWN[:30]}'\n"
        "    token = make_token(a, 12345678)\n"
        "    return a@b.transpose(1) + big +12345678901, items[1::2]\n"
    )
    result = masked(source, "code")
    ast.parse(result)
    assert "jane@company.org" not in result and "93.184.216.34" not in result and DRAWN[:30] not in result
    assert "big = 4111111111111111" in result and "'CARD_NUMBER'" in result and "+12345678901" in result
    assert "a@b.transpose(1)" in result and "make_token(a, 12345678)" in result


PERSONAL = (
    "4111 1111 1111 1111", "378282246310005", "3782-822463-10005", "+44 20 7946 0958", "(212) 555-2368", "212-555-2368",
    "+4930123456789", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "a_b@sub.domain.org", "j (at) x.org",
    "DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "AB 12 34 56 C", "536-22-8145", "131052-308T", "12345678Z",
    "RSSMRA85T10A562S", "93.18.2.1", "Tel 030 1234567", "postgres://bob:s3cr3tpw@db.host.org/x", "pwd=Tr0ub4dor&3x",
    f"api_key = '{DRAWN[:24]}'", f"Authorization: Bearer {DRAWN[:40]}", *KEYS.values(),
)  # fmt: skip
PIECES = st.sampled_from(PERSONAL) | st.sampled_from("@.:+-= 1fé\n'_/") | st.from_regex(r"\d{1,5}", fullmatch=True)
TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text(alphabet="aB@.:-+ ()/0123456789fé\n", max_size=80)


@given(TEXTS, st.sampled_from(["text", "code"]))
def test_idempotent(text: str, format: str) -> None:
    once = masked(text, format)
    assert masked(once, format) == once


@given(TEXTS, st.sampled_from(["en", "de"]))
def test_rounds_that_look_beside_what_was_masked_find_all(text: str, language: str) -> None:
    found = look(text, language=language)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "_beside", lambda spans, windows: windows)
        assert look(text, language=language) == found


@given(TEXTS)
@example("0212-555-2368postgres://bob:s3cr3tpw@db.host.org/x")  # a number that a window cut would be a shorter one
def test_what_rules_find_in_a_text_they_find_in_the_windows_of_their_signs(text: str) -> None:
    data, where = text.encode(), Where(False, "en")
    windows = dict(windows_of(pa.array([text]))).get(0, [])
    everywhere = [Window(int(sign), 0, len(data), len(data), 99, 99) for sign in Sign]
    assert find(data, windows, where) == find(data, everywhere, where)


@given(TEXTS, st.sampled_from(["en", "de"]))
def test_rules_find_nothing_more_where_they_do_not_look(text: str, language: str) -> None:
    found = look(text, language=language)
    shortcuts: dict[str, Any] = {"least_digits": 0, "least_number": 0, "needs": b"", "part": b"", "words": None}
    shortcuts["elsewhere"] = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "RULES", [replace(rule, **shortcuts) for rule in masking.RULES])
        assert look(text, language=language) == found


@pytest.mark.parametrize("year", ["2023", "2024", "1900"])
def test_dates_in_numbers_of_persons_exist(year: str) -> None:
    exist = {(day, month) for month in range(14) for day in range(33) if _is_date(str(day), f"{month:02}", year)}
    first = date(2000 + int(year[-2:]), 1, 1)
    days = (first + timedelta(number) for number in range(366))
    assert exist == {(day.day, day.month) for day in days if day.year == first.year}


def test_places_to_look_at_do_not_depend_on_the_texts_beside() -> None:
    texts = [
        text for number in range(300) for text in (f"a{number}@b.de c@d.fr", "", f"tel 030 {number + 1000000} 4 5")
    ]
    together = dict(windows_of(pa.array(texts)))  # more of them than there is room for at first
    for number, text in enumerate(texts):
        assert together.get(number, []) == dict(windows_of(pa.array([text]))).get(0, [])


@pytest.mark.parametrize("text", ["=", "= ", "=\t", "==a ", "'=\""])
def test_a_ruler_of_a_megabyte_is_read_once(text: str) -> None:
    assert not list(windows_of(pa.array([text * (1_000_000 // len(text))])))


def audited(text: str, **settings: Any) -> dict[str, Any]:
    return judged(pii_step(data_config(pii=settings)), raw(text), language="en")[0]


def test_counts_by_kind_and_leaves_the_kept_kinds_in_the_text() -> None:
    text = "ä a@b.de c@d.fr 93.184.216.34"
    row = audited(text)
    assert row["text"] == "ä EMAIL_ADDRESS EMAIL_ADDRESS IP_ADDRESS"
    counts = {kind: row[f"pii_{kind}"] for kind in KINDS}
    assert counts == dict.fromkeys(KINDS, 0) | {"email": 2, "ip": 1}
    kept = audited(text, keep=["email"])
    assert kept["text"] == "ä a@b.de c@d.fr IP_ADDRESS" and kept["pii_email"] == 2
    assert audited(text, keep=list(KINDS))["text"] == text


def test_spans_are_of_the_characters_of_the_written_text() -> None:
    row = audited("äöü a@b.de, c@d.fr@e.it\u2028and 93.184.216.34 ☎ +44 20 7946 0958", keep=["ip"])
    found = [(span["kind"], row["text"][span["begin"] : span["end"]]) for span in row["pii_spans"]]
    assert found == [
        ("email", "EMAIL_ADDRESS"), ("email", "EMAIL_ADDRESS"), ("ip", "93.184.216.34"), ("phone", "PHONE_NUMBER"),
    ]  # fmt: skip
    assert {span["hash"] for span in row["pii_spans"]} == {None}


def test_a_document_with_more_of_a_kind_than_allowed_is_removed() -> None:
    step = pii_step(data_config(pii={"max_count": {"email": 1, "card": 0}}))
    assert judged(step, raw("a@b.de"), language="en")[1].reason is None
    verdict = judged(step, raw("a@b.de c@d.fr 4111 1111 1111 1111"), language="en")[1]
    assert [(entry["reason"], entry["detail"]) for entry in verdict.reasons or ()] == [
        ("pii_email", "2 > 1"), ("pii_card", "1 > 0"),
    ]  # fmt: skip


def test_hashes_need_the_key_and_are_of_the_value_in_any_spelling(tmp_path: Path) -> None:
    def hashes(key: str) -> list[str]:
        (tmp_path / "key").write_text(key)
        text = "+44 20 7946 0958, call (020) 7946-0958, 4111 1111 1111 1111 and 4111111111111111, A@B.de a@b.de"
        return [span["hash"] for span in audited(text, hash_key=str(tmp_path / "key"))["pii_spans"]]

    first, second = hashes("k" * 32), hashes("l" * 32)
    assert first[0::2] == first[1::2] and len(set(first)) == 3
    assert not set(first) & set(second) and hashes("k" * 32 + "\n") == first


def test_the_key_is_in_no_manifest_and_decides_the_columns(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    config = data_config(pii={"hash_key": str(key)})
    assert "0123456789abcdef" not in str(config.tagging()) + repr(config) + repr(pii_step(config))
    before = config.tagging()
    assert before != data_config().tagging()
    key.write_text("0123456789abcdeg" * 4)
    assert data_config(pii={"hash_key": str(key)}).tagging() != before
    with pytest.raises(ConfigError, match="can be guessed"):
        key.write_text("short")
        data_config(pii={"hash_key": str(key)})
    with pytest.raises(ConfigError, match="No such file"):
        data_config(pii={"hash_key": str(tmp_path / "none")})


def test_strings_in_metadata_are_masked_too() -> None:
    step = pii_step(data_config()).measure
    assert isinstance(step, MaskPii)
    row, _ = judged(pii_step(data_config()), raw("x", author="Jane <jane@company.org>", year=2024), language="en")
    assert row["meta"] == '{"author": "Jane <EMAIL_ADDRESS>", "year": 2024}' and row["pii_email"] == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.org/?email=a@b.org&x=1", "https://a.org/?email=EMAIL_ADDRESS&x=1"),
        ("https://a.org/u/jane%40company.org/a%20b", "https://a.org/u/EMAIL_ADDRESS/a%20b"),
        ("https://a.org/a%2Fb%20c?d=%41", "https://a.org/a%2Fb%20c?d=%41"),  # nothing is found: nothing changes
        ("https://a.org/?tel=%2B44%2020%207946%200958", "https://a.org/?tel=PHONE_NUMBER"),
        ("https://a.org/2024/01/02/1234567890123456", "https://a.org/2024/01/02/1234567890123456"),
        ("https://jane@company.org/", "https://EMAIL_ADDRESS@company.org/"),
        ("https://bot:correct-h0rse-b@db.company.org/x", "https://SECRET_KEY@db.company.org/x"),
        ("mailto:jane@company.org", "mailto:EMAIL_ADDRESS"),
        ("https://93.184.216.34:80/?from=93.184.216.34", "https://93.184.216.34:80/?from=IP_ADDRESS"),
        (None, None),
    ],
)
def test_addresses_are_masked_but_their_hosts(url: str | None, expected: str | None) -> None:
    row, _ = judged(pii_step(data_config()), replace(raw("no word"), url=url), language="en")
    assert row["url"] == expected and row["text"] == "no word"
    assert row["address"] == (None if url is None else address_hash(url))
    masks = {"EMAIL_ADDRESS": "email", "PHONE_NUMBER": "phone", "SECRET_KEY": "secret", "IP_ADDRESS": "ip"}
    found = [(masks[row["url"][span["begin"] : span["end"]]], span["column"]) for span in row["pii_spans"]]
    assert [kind for kind, _ in found] == [kind for mask, kind in masks.items() if mask in (expected or "")]
    assert all(row[f"pii_{kind}"] == 1 and column == "url" for kind, column in found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mail/jane@company.org/in.mbox:12", "mail/EMAIL_ADDRESS/in.mbox:12"),
        ("jane@company.org.txt", "EMAIL_ADDRESS.txt"), ("jane@company.org.jsonl.gz:3", "EMAIL_ADDRESS.jsonl.gz:3"),
        ("all.tar#to/jane@company.org", "all.tar#to/EMAIL_ADDRESS"), ("icon@2x.png", "icon@2x.png"),
        ("2024-01-02/1234567890123456.txt", "2024-01-02/1234567890123456.txt"),
    ],
)  # fmt: skip
def test_paths_are_masked_but_the_numbers_of_their_rows(path: str, expected: str) -> None:
    row, _ = judged(pii_step(data_config()), raw("é a@b.de", path=path), language="en")
    assert row["path"] == expected and row["pii_email"] == 1 + ("EMAIL" in expected)
    assert all(row[span["column"]][span["begin"] : span["end"]] == "EMAIL_ADDRESS" for span in row["pii_spans"])


def test_kinds_that_are_kept_stay_in_addresses_and_count() -> None:
    url = "https://jane@company.org/%41?to=a%40b.org&from=a@b.org"
    row, _ = judged(pii_step(data_config(pii={"keep": ["email"]})), replace(raw("x"), url=url), language="en")
    assert row["url"] == url and row["pii_email"] == 2
    assert [url[span["begin"] : span["end"]] for span in row["pii_spans"]] == ["jane", "a@b.org"]


ADDRESS_PIECES = ["https://", "//", "jane@company.org", "%40", "@", "a.org", "/", "?q=", "#", "[", "]", ":", "é", " ",
                  "+4915112345678", "%2B", "93.184.216.34", "user:pa55w0rd-x@", "%", "%C3", "\t"]  # fmt: skip


@example("/\t/jane@company.org")
@example("jane@company.org%C3+4915112345678jane@company.org")
@given(st.lists(st.sampled_from(ADDRESS_PIECES), max_size=8).map("".join))
def test_masked_addresses_have_their_host_and_nothing_more_to_mask(url: str) -> None:
    for column in ("url", "path"):
        masked = masked_places(column, [url], ["en"]).get(0)
        if masked is not None:
            assert all(again.text == masked.text for again in masked_places(column, [masked.text], ["en"]).values())
            data = masked.text.encode()
            assert all(data[span.begin : span.end].decode() == MASKS[span.kind] for span in masked.spans)
            assert column == "path" or host_of(url) in ("", host_of(masked.text))  # "": it is broken
