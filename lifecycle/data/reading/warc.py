"""WARC and WET files, as crawlers and Common Crawl write them: the pages and texts in their records.

A record is text if it is an answer of status 200 with a page or plain text, a resource of such a type, or a conversion
(WET). Requests, metadata and revisits have no document; every other record that is not used is told, by its offset, as
indexes of archives (CDX) name it. In a gzip file each record is a member, so a broken one costs no other.
ISO 28500:2017 (WARC 1.1).
"""

import io
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

from fastwarc.warc import WarcRecord

from lifecycle.data.reading.raw import Content, Refused, UnreadableError
from lifecycle.data.reading.row_parts import RowPart
from lifecycle.data.reading.streams import INPUT, BrokenStreamError, Budget, Members, decompressed
from lifecycle.data.reading.times import iso_time

MAX_HEAD = 1 << 16  # of a record, and of the HTTP message in it
WITHOUT_DOCUMENT = ("warcinfo", "request", "metadata", "revisit")
FORMAT_OF_TYPE = {
    "text/html": "html", "application/xhtml+xml": "html", "text/plain": "text", "text/markdown": "markdown",
    "application/pdf": "pdf",
}  # fmt: skip
_VERSION = re.compile(rb"WARC/\d\.\d+\r?\n")
_NEXT = re.compile(rb"(?<=\n)WARC/\d\.\d+\r?\n")
_FIELD = re.compile(rb"^([\w-]+)[ \t]*:[ \t]*([^\r\n]*)", re.MULTILINE)


@dataclass(frozen=True)
class _Record:
    """A record: where it begins in what is read, the bytes that it has in the file if they are its own, its content."""

    at: int
    fields: dict[str, str]
    data: bytes | UnreadableError  # all of it, with its header
    block: int = 0  # where behind the header its content begins
    is_cut: bool = False  # by the end of what is read
    begin: int | None = None
    end: int | None = None


def warc_contents(
    file: io.BufferedReader, path: str, compression: str | None, budget: Budget, max_bytes: int, part: RowPart | None
) -> Iterator[Content | Refused]:
    """The pages and texts of an archive, or of a part of one."""
    limit = max_bytes + MAX_HEAD
    if compression == "gzip":
        records = _gzip_records(file, budget, limit, part)
    else:
        plain = file if compression is None else decompressed(file, compression, budget)
        records = _records(_Stream(plain.read), limit)
    for record in records:
        place = f"{path}:{record.at}"
        if _is_without_document(record):
            continue
        try:
            yield _content(record, place, limit)
        except UnreadableError as error:
            yield Refused(place, error)


def _is_without_document(record: _Record) -> bool:
    fields = record.fields
    is_about = fields.get("warc-target-uri", "").strip("<").startswith("metadata:")  # wget's log and arguments
    return isinstance(record.data, bytes) and (fields.get("warc-type") in WITHOUT_DOCUMENT or is_about)


def _gzip_records(file: BinaryIO, budget: Budget, limit: int, part: RowPart | None) -> Iterator[_Record]:
    """The records of a file with a member for each, by the members' offsets. Of one that was not compressed so, by
    offsets in what it holds, added to that of the member before."""
    begin, last = (part.begin, part.end) if part else (0, math.inf)
    file.seek(begin)
    members = Members(file, "gzip", budget, begin, last, is_joined=False)
    while members.is_open:
        start, held = members.start, None
        try:
            for record in _records(_Stream(members.read), limit):
                if held is not None:
                    yield replace(held, begin=None, end=None)
                held = replace(record, at=start + record.at)
            members.advance()
            if held is not None and held.is_cut and members.is_open and not _begins_record(file, members.start):
                yield from _joined_records(file, budget, limit, start, held.at - start, last)
                return
        except BrokenStreamError as error:
            if held is not None and held.at != start:
                yield replace(held, begin=None, end=None)
            yield _Record(start, {}, error)
            continue
        if held is not None:
            is_alone = held.at == start
            yield replace(held, begin=start if is_alone else None, end=members.end if is_alone else None)


def _begins_record(file: BinaryIO, at: int) -> bool:
    """Whether a record begins with a member; one that is broken is told by itself when it is read."""
    place = file.tell()
    file.seek(at)
    data = file.read(INPUT)
    file.seek(place)
    try:
        return _VERSION.match(zlib.decompressobj(31).decompress(data, MAX_HEAD)) is not None
    except zlib.error:
        return True


def _joined_records(file: BinaryIO, budget: Budget, limit: int, start: int, at: int, last: float) -> Iterator[_Record]:
    """The records from the one that begins `at` bytes into a member, and goes on in the next."""
    file.seek(start)
    members = Members(file, "gzip", budget, start, last)
    stream = _Stream(members.read)
    stream.skip(at)
    while True:
        try:
            for record in _records(stream, limit):
                yield replace(record, at=start + record.at, begin=None, end=None)
            return
        except BrokenStreamError as error:
            yield _Record(start + stream.at, {}, error)


def _records(stream: "_Stream", limit: int) -> Iterator[_Record]:
    """The records in a stream, by their offsets there, each with at most `limit` bytes."""
    while head := _head(stream):
        at = stream.at - len(head)
        fields = {name.decode().lower(): value.decode("utf-8", "replace") for name, value in _FIELD.findall(head)}
        size = fields.get("content-length", "")
        if not _VERSION.match(head) or not size.isdigit():
            what = "no WARC header" if not _VERSION.match(head) else "no Content-Length"
            _resume(stream, head[1:])
            yield _Record(at, {}, UnreadableError("broken_record", what))
            continue
        block = stream.read(min(int(size), limit))
        num_read = len(block) + stream.skip(int(size) - len(block))
        end = stream.at
        data: bytes | UnreadableError = head + block
        if num_read < int(size):
            data = UnreadableError("truncated", f"{num_read} bytes of a record of {size}: the file ends too early")
        elif not stream.is_at_record():
            data = UnreadableError("broken_record", f"Content-Length is {size}, and no record ends there")
            _resume(stream, block)
        elif int(size) > limit:
            data = UnreadableError("too_large", f"a record of {size} bytes")
        yield _Record(at, fields, data, len(head), num_read < int(size), at, end)


def _head(stream: "_Stream") -> bytes:
    """The lines of a record's header and the empty one behind them; those of other things up to there."""
    head = line = stream.readline()
    while line.strip() and len(head) < MAX_HEAD:
        line = stream.readline()
        head += line
    return head


def _resume(stream: "_Stream", behind: bytes) -> None:
    """Goes to the first record in what was read behind a fault, or else behind that."""
    if found := _NEXT.search(behind):
        stream.unread(behind[found.start() :])
        return
    while (line := stream.readline()) and not _VERSION.match(line):
        pass
    stream.unread(line)


class _Stream:
    """A file that is read once, and takes back a little; `at` is where it is."""

    def __init__(self, fill: Callable[[int], bytes | None]) -> None:
        self._fill, self._held, self._place, self.at = fill, b"", 0, 0

    def _more(self) -> bool:
        more = self._fill(INPUT)
        self._held, self._place = self._held[self._place :] + (more or b""), 0
        return bool(more)

    def _taken(self, size: int) -> bytes:
        data = self._held[self._place : self._place + size]
        self._place += len(data)
        self.at += len(data)
        return data

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        parts = [self._taken(size)]
        while (size := size - len(parts[-1])) and self._more():
            parts.append(self._taken(size))
        return b"".join(parts)

    def readline(self) -> bytes:
        """A line, or of a longer one `MAX_HEAD` bytes."""
        while True:
            end = self._held.find(b"\n", self._place, self._place + MAX_HEAD) + 1
            if end or len(self._held) - self._place >= MAX_HEAD or not self._more():
                return self._taken(end - self._place if end else MAX_HEAD)

    def skip(self, size: int) -> int:
        """Passes so many bytes, and returns how many there were."""
        left = size
        while left and (data := self.read(min(INPUT, left))):
            left -= len(data)
        return size - left

    def unread(self, data: bytes) -> None:
        """Takes back what was read last."""
        self._held, self._place = data + self._held[self._place :], 0
        self.at -= len(data)

    def is_at_record(self) -> bool:
        """Whether a record has its end here: two empty lines, or fewer before the next one or the file's end."""
        num_empty = 0
        while (line := self.readline()) and not line.strip():
            num_empty += 1
        self.unread(line)
        return num_empty >= 2 or not line or _VERSION.match(line) is not None


def _content(record: _Record, path: str, limit: int) -> Content:
    """The page or text of a record; raises `UnreadableError` if it has none."""
    if isinstance(record.data, UnreadableError):
        raise record.data
    kind, charset = record.fields.get("warc-type"), None
    if kind == "response":
        data, type, charset = _answer(record.data, limit)
    elif kind in ("conversion", "resource"):
        type = record.fields.get("content-type", "")
        data = record.data[record.block :]
    else:
        raise UnreadableError("broken_record", f"of unknown type {kind!r}")
    format = FORMAT_OF_TYPE.get(type.partition(";")[0].strip().lower())
    if format is None:
        raise UnreadableError("no_text", f"content of type {type[:80]!r}")
    cut = record.fields.get("warc-truncated")
    return Content(
        path, format, data, {"truncated": cut} if cut else {}, charset=charset, begin=record.begin, end=record.end,
        url=record.fields.get("warc-target-uri", "").strip("<>") or None, time=iso_time(record.fields.get("warc-date")),
    )  # fmt: skip


def _answer(data: bytes, limit: int) -> tuple[bytes, str, str | None]:
    """The body of an HTTP answer, its type and charset. Many archives keep it decoded, and the header that says how it
    was encoded too."""
    try:
        return _http(data, limit, "all")
    except OSError:
        pass
    try:
        return _http(data, limit, "none")
    except OSError as error:
        raise UnreadableError("broken_record", f"no HTTP answer: {error}") from None


def _http(data: bytes, limit: int, decode: Literal["all", "none"]) -> tuple[bytes, str, str | None]:
    record = WarcRecord.from_bytes(data + b"\r\n\r\n")
    record.parse_http(decode, MAX_HEAD, strict_mode=False)
    status = record.http_headers.status_code if record.is_http_parsed else None
    if status is None:
        raise UnreadableError("no_text", "no HTTP answer")
    if status != 200:
        raise UnreadableError("status", f"HTTP status {status}")
    body = record.reader.read(limit + 1)
    if len(body) > limit:
        raise UnreadableError("too_large", f"an answer of more than {limit} bytes")
    return body, record.http_content_type or "", record.http_charset
