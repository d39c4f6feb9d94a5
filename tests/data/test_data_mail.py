"""Mails: which part is the text, what headers say, encodings right and wrong; mailboxes, whole and in parts."""

import email
import email.policy
import io
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path

import pytest
from extraction import document, documents, extract, extract_path, reasons, skipped
from hypothesis import example, given
from hypothesis import strategies as st

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.documents_of import documents_of
from lifecycle.data.reading.mail import mbox_contents
from lifecycle.data.reading.raw import Content, UnreadableError, raw_batch
from lifecycle.data.reading.row_parts import RowPart, row_parts

PLAIN = b"""\
From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>
To: a@example.org,
 b@example.org
Subject: =?iso-8859-1?B?TfxuY2hlbg==?= =?utf-8?B?w7w=?=
 =?utf-8?Q?ber_?= alles
Date: Tue, 02 Jan 2024 03:04:05 +0200
Archived-At: <https://lists.example.org/1>
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

M=FCnchen =
ist gro=DF.
"""


def test_a_mail_with_what_its_headers_say(tmp_path: Path) -> None:
    found = document(extract(tmp_path / "a.eml", PLAIN))
    assert (found.text, found.format) == ("München ist groß.\n", "mail")
    assert (found.time, found.url) == ("2024-01-02T01:04:05Z", "https://lists.example.org/1")
    assert found.meta == {
        "from": "Jörg <joerg@example.org>", "to": "a@example.org, b@example.org", "subject": "Münchenüber alles",
    }  # fmt: skip


def mail(*, plain: str | None = None, html: str | None = None, attached: bytes | None = None) -> bytes:
    message = EmailMessage()
    message["From"], message["Subject"] = "a@example.org", "Subject"
    if plain is not None:
        message.set_content(plain)
    if html is not None:
        (message.set_content if plain is None else message.add_alternative)(html, subtype="html")
    if attached is not None:
        message.add_attachment(attached, "application", "pdf", filename="a.pdf")
        message.add_attachment("attached text", filename="a.txt")
    return message.as_bytes()


@pytest.mark.parametrize(
    ("content", "text", "attachments"),
    [
        (mail(plain="Plain \u20ac.\n", html="<p>Page."), "Plain \u20ac.\n", None),
        (mail(html="<p>Only a <b>page"), "Only a page\n", None),
        (mail(plain=" \n", html="<p>Only a <b>page"), "Only a page\n", None),
        (mail(plain="Text.\n", attached=b"%PDF"), "Text.\n", 2),
        (mail(plain="Text.\n", html="<p>Page", attached=b"%PDF"), "Text.\n", 2),
    ],
)
def test_plain_text_first_and_no_attachments(
    tmp_path: Path, content: bytes, text: str, attachments: int | None
) -> None:
    found = document(extract(tmp_path / "a.eml", content))
    assert (found.text, found.meta.get("attachments")) == (text, attachments)


def test_a_mail_in_a_mail_is_an_attachment(tmp_path: Path) -> None:
    outer = EmailMessage()
    outer["Subject"] = "Fwd"
    outer.set_content("See below.\n")
    outer.add_attachment(email.message_from_bytes(PLAIN, policy=email.policy.default))
    found = document(extract(tmp_path / "a.eml", outer.as_bytes()))
    assert (found.text, found.meta) == ("See below.\n", {"subject": "Fwd", "attachments": 1})


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        (b"Content-Type: text/plain; charset=koi8-r", "Мир вам".encode("koi8-r"), "Мир вам\n"),
        (b"Content-Type: text/plain; charset=none", b"didn\x92t and so on\n", "didn\u2019t and so on\n"),
        (b"Content-Type: TEXT/PLAIN charset=US-ASCII", b"no semicolon", "no semicolon\n"),
        (b"Content-Type: text", b"half a type", "half a type\n"),
        (b"Content-Type: text/plain; charset=us-ascii", "día a día".encode(), "día a día\n"),
        (b"Content-Transfer-Encoding: base64", b"VGV4dCBv\n!*\n ZiBpdA", "Text of it\n"),
        (b"Content-Transfer-Encoding: none", b"as it is", "as it is\n"),
        (b"Content-Type: multipart/mixed; boundary=none", b"no part at all", None),
        (
            b"Content-Type: text/plain; format=flowed", b"One \npara \ngraph.\n> quoted \n>more\n-- \nme",
            "One para graph.\n> quoted \n>more\n-- \nme\n",
        ),
        (b"Content-Type: text/plain; format=flowed; delsp=yes", "日本 \n語\n".encode(), "日本語\n"),
        (b"Content-Type: text/html; charset=utf-8\nContent-Disposition: inline; filename=a.html", b"<p>body", "body\n"),
        (b"Content-Type: application/pdf", b"%PDF", None),
        (b"X: y", b"", None),
    ],
)  # fmt: skip
def test_bodies_as_they_come(tmp_path: Path, headers: bytes, body: bytes, text: str | None) -> None:
    found = extract(tmp_path / "a.eml", b"Subject: s\n" + headers + b"\n\n" + body)
    if text is None:
        assert skipped(found).reason == "no_text"
    else:
        assert document(found).text == text


@pytest.mark.parametrize(
    ("line", "meta"),
    [
        (b"Subject: caf\xc3\xa9", {"subject": "café"}),
        (b"Subject: caf\xe9", {"subject": "café"}),
        (b"Subject: =?none?q?a_?= =?utf-8?x?b?=", {"subject": "a =?utf-8?x?b?="}),
        (b"Subject: =?utf-8?b?5pel5pys6A==?= =?utf-8?b?qp4=?=", {"subject": "日本語"}),  # cut in a character
        (b"Subject:\nSubject: second", {}),
        (b"Subject one\nFrom: a", {}),
        (b"From:", {}),
    ],
)
def test_headers_as_they_come(tmp_path: Path, line: bytes, meta: dict[str, str]) -> None:
    found = documents(extract(tmp_path / "a.eml", line + b"\nDate: never\n\nText\n"))
    assert [entry.meta for entry in found] == [meta] or skipped(
        extract_path(tmp_path / "a.eml")
    ).reason == "broken_mail"
    assert all(entry.time is None for entry in found)


def test_what_is_no_mail(tmp_path: Path) -> None:
    assert skipped(extract(tmp_path / "a.eml", b"Just some text.\n\nMore.\n")).reason == "broken_mail"
    deep = b"Subject: a\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(2000)
    )
    assert skipped(extract(tmp_path / "a.eml", deep, 10**6)).reason in ("broken_mail", "no_text")


@given(st.binary(max_size=60), st.integers(0, 10**6))
@example(b"\xff=?utf-8?q?=00?=\n", 0)
def test_no_damage_ends_the_reading(change: bytes, at: int) -> None:
    data = bytearray(mail(plain="Plain \u20ac.\n", html="<p>Page.", attached=b"%PDF"))
    at %= len(data)
    data[at : at + len(change)] = change
    with suppress(UnreadableError):
        assert list(documents_of(Content("a", "mail", bytes(data)), SourceConfig(name="s", path=".")))


def mailbox(texts: list[str], newline: str = "\n") -> bytes:
    mails = [f"From a@b.c  Thu Aug 22 12:36:23 2002\nSubject: mail {n}\n\n{text}\n\n" for n, text in enumerate(texts)]
    return "".join(mails).replace("\n", newline).encode()


TRICKY = ["one", "two\n\nFrom here on it goes well\n", ">From the start\n>>From quoted", "", "\n\nfour"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_mails_of_a_mailbox(tmp_path: Path, newline: str) -> None:
    content = mailbox(TRICKY, newline)
    found = extract(tmp_path / "a.mbox", content)
    assert [entry.text.replace("\r", "") for entry in documents(found)] == [
        "one\n", "two\n\nFrom here on it goes well\n", "From the start\n>From quoted\n", "four\n",
    ]  # fmt: skip
    assert [(entry.path, entry.meta["subject"]) for entry in documents(found)] == [
        (f"a.mbox:{number}", f"mail {number - 1}") for number in (1, 2, 3, 5)
    ]
    assert reasons(found) == [("a.mbox:4", "no_text")]
    assert all(content[entry.begin : entry.end].startswith(b"From a@b.c") for entry in documents(found))


def test_a_mail_that_is_too_large_costs_itself(tmp_path: Path) -> None:
    content = mailbox(["one", "line\n" * 40_000, "x" * 3_000_000, "four"])
    found = extract(tmp_path / "a.mbox", content)
    assert [entry.text for entry in documents(found)] == ["one\n", "four\n"]
    assert reasons(found) == [("a.mbox:2", "too_large"), ("a.mbox:3", "too_large")]


@given(
    st.lists(st.sampled_from([*TRICKY, "long " * 60]), min_size=1, max_size=12),
    st.integers(50, 900),
    st.sampled_from(["\n", "\r\n"]),
)
def test_parts_have_the_mails_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, newline: str
) -> None:
    path = tmp_path_factory.mktemp("mail") / "a.mbox"
    path.write_bytes(mailbox(texts, newline))

    def read_part(part: RowPart | None) -> list[object]:
        with path.open("rb", 1 << 18) as file:
            assert isinstance(file, io.BufferedReader)
            return list(mbox_contents(file, "a", 10**6, part))

    parts = row_parts(path, "mbox", size)
    assert [item for part in parts or [None] for item in read_part(part)] == read_part(None)
    assert [part.first_row for part in parts[1:]] == [part.first_row + part.num_rows for part in parts[:-1]]


@pytest.mark.parametrize(
    "value", ["<no address>", "=?utf-7?Q?http://x/+2AA-?=", "=?unicode_escape?Q?http://x/=5Cud800?="]
)
def test_an_archive_that_is_no_address_is_none(tmp_path: Path, value: str) -> None:
    found = document(extract(tmp_path / "a.eml", f"Subject: s\nArchived-At: {value}\n\ntext\n"))
    assert found.url is None and raw_batch([found])["text"].to_pylist() == ["text\n"]
