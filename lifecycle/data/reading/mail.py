"""Mails, alone or in a mailbox: the text that people wrote, with subject, sender, receivers and time.

Plain text is preferred to a page, which is there for its looks; attachments are counted and not read. Nothing of a
header or an encoding has to be right: what cannot be decoded is read as what it most likely is. RFC 5322 (messages),
2045 to 2047 (MIME), 3676 (flowed text), 4155 (mbox).
"""

import io
import math
import quopri
import re
from binascii import a2b_base64
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from email import message_from_bytes
from email.errors import MessageError
from email.message import Message
from typing import Any

from lifecycle.data.reading.decoding import decode
from lifecycle.data.reading.html_text import parse_html
from lifecycle.data.reading.raw import Content, Refused, UnreadableError, address_in
from lifecycle.data.reading.row_parts import MAIL_BEGIN, RowPart
from lifecycle.data.reading.streams import lines
from lifecycle.data.reading.times import iso_time

MAX_LINE = 1 << 20
SHOWN = ("subject", "from", "to")  # headers that become metadata
KNOWN = {*SHOWN, "date", "received", "message-id", "return-path", "delivered-to"}  # a mail has one of them
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
_WORD = re.compile(r"=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=")
_WORDS = re.compile(rf"{_WORD.pattern}(?:\s*{_WORD.pattern})*")


def mbox_contents(
    file: io.BufferedReader, path: str, max_bytes: int, part: RowPart | None = None
) -> Iterator[Content | Refused]:
    """The mails of a mailbox, or of a part of one, by their numbers."""
    number, first, last = (part.first_row, part.begin, part.end) if part else (0, 0, math.inf)
    if part:
        file.seek(first)
    mail, is_behind_empty = _Mail(first), False
    for begin, end, line in lines(file, MAX_LINE, first, last):
        if is_behind_empty and isinstance(line, bytes) and _begins_mail(line):
            number += 1
            yield from mail.content(f"{path}:{number}", begin, max_bytes)
            mail = _Mail(begin)
        mail.add(line, max_bytes)
        is_behind_empty = line in (b"\n", b"\r\n")
        first = end
    yield from mail.content(f"{path}:{number + 1}", first, max_bytes)


def _begins_mail(line: bytes) -> bool:
    return line.startswith(b"From ") and MAIL_BEGIN.search(b"\n\n" + line) is not None


class _Mail:
    """The lines of a mail in a mailbox, while they are read."""

    def __init__(self, begin: int) -> None:
        self._begin, self._data = begin, bytearray()
        self._fault: UnreadableError | None = None

    def add(self, line: bytes | UnreadableError, max_bytes: int) -> None:
        if isinstance(line, UnreadableError):
            self._fault = self._fault or line
        elif len(self._data) <= max_bytes:
            self._data += line

    def content(self, path: str, end: int, max_bytes: int) -> Iterator[Content | Refused]:
        """The mail; nothing for empty lines."""
        if self._fault is None and len(self._data) > max_bytes:
            self._fault = UnreadableError("too_large", f"a mail of {end - self._begin} bytes")
        if self._fault is not None:
            yield Refused(path, self._fault)
        elif self._data.strip():
            own = self._data.partition(b"\n")[2] if self._data.startswith(b"From ") else self._data
            yield Content(path, "mail", _QUOTED_FROM.sub(rb"\1", own), begin=self._begin, end=end)


def parse_mail(content: Content) -> Content:
    """A mail's text, with what its headers say; raises `UnreadableError` for what is no mail or has no text."""
    data = content.data if isinstance(content.data, bytes) else content.data.encode("utf-8", "replace")
    try:
        message = message_from_bytes(data)
        headers = {name.lower(): _header(value) for name, value in reversed([*message.raw_items()])}
        leaves = list(_leaves(message))
    except (MessageError, RecursionError) as error:
        raise UnreadableError("broken_mail", f"not readable as a mail: {error}") from None
    if not KNOWN & headers.keys():
        raise UnreadableError("broken_mail", "no header that a mail has")
    texts = [leaf for leaf in leaves if _is_text(leaf, message)]
    meta: dict[str, Any] = {name: headers[name] for name in SHOWN if headers.get(name)}
    if others := len(leaves) - len(texts):
        meta["attachments"] = others
    address = address_in(headers.get("archived-at", "").strip("<> "))
    return replace(
        content, data=_text(texts, content.path), meta=content.meta | meta, url=content.url or address,
        time=content.time or iso_time(headers.get("date")),
    )  # fmt: skip


def _leaves(message: Message) -> Iterator[Message]:
    """The parts that have no parts themselves; a mail in a mail is one."""
    if message.get_content_maintype() == "multipart" and message.is_multipart():
        for part in message.get_payload():
            assert isinstance(part, Message)
            yield from _leaves(part)
    else:
        yield message


def _is_text(part: Message, message: Message) -> bool:
    is_named = part is not message and part.get_filename() is not None
    is_attached = is_named or part.get_content_disposition() == "attachment"
    return _type(part) in ("text/plain", "text/html") and not is_attached and not part.is_multipart()


def _type(part: Message) -> str:
    """The type of a part's content; often there is no `;` behind it."""
    return part.get_content_type().split(maxsplit=1)[0]


def _text(parts: list[Message], path: str) -> str:
    """The plain texts; if there are none, the pages as text."""
    texts = [_characters(part, path) for part in parts if _type(part) == "text/plain"]
    if not any(text.strip() for text in texts):
        texts = [parse_html(_characters(part, path))[0] for part in parts if _type(part) == "text/html"]
    text = "\n\n".join(text.strip("\r\n") for text in texts if text.strip())
    if not text:
        raise UnreadableError("no_text", "no text in the mail")
    return f"{text}\n"


def _characters(part: Message, path: str) -> str:
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    text = decode(data, "html" if _type(part) == "text/html" else "mail", path, part.get_content_charset())
    if str(part.get_param("format", "")).lower() != "flowed":
        return text
    return _unflowed(text, str(part.get_param("delsp", "")).lower() == "yes")


def _unflowed(text: str, is_space_added: bool) -> str:
    """Joins the lines of a paragraph, which end with a space; those of quotes stay, and so does the mark of a
    signature."""
    lines: list[str] = []
    is_open = False
    for line in text.replace("\r\n", "\n").split("\n"):
        is_quote = line.startswith(">")
        own = line if is_quote else line.removeprefix(" ")
        if is_open and not is_quote and own != "-- ":
            lines[-1] = (lines[-1][:-1] if is_space_added else lines[-1]) + own
        else:
            lines.append(own)
        is_open = own.endswith(" ") and own != "-- " and not is_quote
    return "\n".join(lines)


def _header(value: str) -> str:
    """A header's value as people see it: on one line, encoded words decoded."""
    data = value.encode("utf-8", "surrogateescape")  # bytes that are not ASCII are against the rules and common
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return " ".join(_WORDS.sub(_decoded, text).split())


def _decoded(words: re.Match[str]) -> str:
    """Encoded words behind each other; a character may begin in one and end in the next."""
    found: list[tuple[str, bytes]] = []
    for charset, encoding, text in _WORD.findall(words[0]):
        data = text.encode("utf-8", "replace")
        with suppress(ValueError):  # what is no base64 stays as it is
            data = a2b_base64(data + b"==") if encoding in "bB" else quopri.decodestring(data, header=True)
        if found and found[-1][0] == charset.lower():
            data = found.pop()[1] + data
        found.append((charset.lower(), data))
    return "".join(_as_charset(data, charset) for charset, data in found)


def _as_charset(data: bytes, charset: str) -> str:
    try:
        return data.decode(charset, "replace")
    except (LookupError, ValueError):  # unknown, or a codec for something else
        return data.decode("utf-8", "replace")
