"""Extraction: turns a file into documents, or says why there are none.

Nothing is executed, nothing is written to disk, and nothing is guessed beyond what a reader would accept. A file that
cannot be decoded, is binary, empty or too large is reported as `Skipped`; so is a row, mail, record or member, with its
place, and the rest of its file is used. Memory holds one document at a time, whatever the file's size.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.archives import Member, tar_members, zip_members
from lifecycle.data.reading.code_language import language_of_program
from lifecycle.data.reading.documents_of import documents_of
from lifecycle.data.reading.epub import epub_contents
from lifecycle.data.reading.mail import mbox_contents
from lifecycle.data.reading.raw import SURROGATES, Content, RawDocument, Refused, Skipped, UnreadableError
from lifecycle.data.reading.row_parts import RowPart
from lifecycle.data.reading.row_readers import Row, arrow_rows, csv_rows, json_lines, json_rows, parquet_rows
from lifecycle.data.reading.rows import row_contents
from lifecycle.data.reading.sources import SourceFile, format_of, is_excluded, no_file
from lifecycle.data.reading.streams import CHUNK, LEAST_BUDGET, Budget, decompressed, inner_name, read_whole
from lifecycle.data.reading.warc import warc_contents

MAX_DEPTH = 2  # archives in each other: the papers of arXiv are tars in a tar
_HTML = re.compile(rb"\s*(?:<!doctype\s+html|<html)\b", re.IGNORECASE)
_LATEX = re.compile(rb"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)


def extract_file(entry: SourceFile, source: SourceConfig, max_bytes: int) -> Iterator[RawDocument | Skipped]:
    """Yields the documents of a file, and a `Skipped` for the file or for each part of it that cannot be used."""
    try:
        if what := no_file(entry.file):
            raise UnreadableError("no_text", what)
        with open(entry.file, "rb", CHUNK) as file:
            assert isinstance(file, io.BufferedReader)
            budget = Budget(entry.file.stat().st_size, max_bytes)
            opened = Opened(entry.path, file, entry.format, source, max_bytes, budget, entry.part)
            is_empty = entry.part is None
            for item in opened.contents():
                is_empty = False
                yield from _documents(item, source)
            if is_empty:
                raise UnreadableError("empty", f"no document in the {entry.format}")
    except UnreadableError as error:
        yield _skipped(source, entry.path, error)
    except OSError as error:
        what = "a folder that cannot be listed" if entry.file.is_dir() else error.strerror or str(error)
        yield Skipped(source.name, entry.path, "unreadable", what)


def _documents(item: Content | Refused, source: SourceConfig) -> Iterator[RawDocument | Skipped]:
    try:
        if isinstance(item, Refused):
            raise item.error
        yield from documents_of(item, source)
    except UnreadableError as error:
        yield _skipped(source, item.path, error)


def _skipped(source: SourceConfig, path: str, error: UnreadableError) -> Skipped:
    """As it can be written: names of members and of columns may have lone surrogates."""
    path, detail = (SURROGATES.sub("\ufffd", text) for text in (path, str(error)))
    return Skipped(source.name, path, error.reason, detail)


@dataclass(frozen=True)
class Opened:
    """A file that is being read, on disk or in an archive."""

    path: str
    file: io.BufferedReader
    format: str
    source: SourceConfig
    max_bytes: int
    budget: Budget
    part: RowPart | None = None
    depth: int = 0  # archives that it is in
    begin: int | None = None
    end: int | None = None

    def contents(self) -> Iterator[Content | Refused]:
        """What is in it; raises `UnreadableError` if that is nothing."""
        _, compression = inner_name(self.path)
        if self.format == "warc":
            yield from warc_contents(self.file, self.path, compression, self.budget, self.max_bytes, self.part)
            return
        if compression is None:
            yield from self._contents()
            return
        inside = replace(self, file=decompressed(self.file, compression, self.budget), begin=None, end=None)
        yield from inside._contents()

    def _contents(self) -> Iterator[Content | Refused]:
        format = self.format or _format_of_content(self.file.peek(CHUNK))
        if not format:
            what = "unknown file extension: set the source's `format`, or exclude the file"
            raise UnreadableError("unknown_format", what)
        if format == "mbox":
            yield from mbox_contents(self.file, self.path, self.max_bytes, self.part)
        elif format == "epub":
            yield from epub_contents(self.seekable(), self.path, self.budget, self.max_bytes)
        elif format in _ROWS:
            yield from self._rows(_ROWS[format](self), format)
        elif format in _ARCHIVES:
            yield from self._members(_ARCHIVES[format](self))
        else:
            yield self._whole(format)

    def _whole(self, format: str) -> Content:
        data = read_whole(self.file, self.max_bytes)
        begin = self.begin if self.depth else self.begin or 0  # what is compressed has no place in an archive
        return Content(self.path, format, data, begin=begin, end=None if begin is None else begin + len(data))

    def _rows(self, rows: Iterator[Row], format: str) -> Iterator[Content | Refused]:
        """The rows' contents; raises `UnreadableError` for a file without a single usable one."""
        num_used, reasons = 0, dict[str, UnreadableError]()  # the first fault of each kind
        for item in row_contents(rows, self.path, self.source, self.max_bytes):
            if isinstance(item, Refused):
                reasons.setdefault(item.error.reason, item.error)
            else:
                num_used += 1
            yield item
        if num_used or (reasons and self.part is not None):
            return
        if not reasons:
            raise UnreadableError("empty", "no rows")
        # Where a row is whole and has no text, the wrong column is asked for; CSV and JSON often hold something else.
        is_meant = format in ("jsonl", "parquet", "arrow") and not self.depth and "no_text_column" in reasons
        what = f"no row with text in column {self.source.text_column!r}; {next(iter(reasons.values()))}"
        raise UnreadableError("no_usable_row" if is_meant else "no_text_column", what)

    def _members(self, members: Iterator[Member | Refused]) -> Iterator[Content | Refused]:
        """What is in the files of an archive."""
        if self.depth == MAX_DEPTH:
            raise UnreadableError("nested", f"an archive in {MAX_DEPTH} others")
        for member in members:
            if isinstance(member, Refused):
                yield member
                continue
            inside = replace(
                self, path=f"{self.path}#{member.name}", file=member.file, format=format_of(member.name, self.source),
                part=None, depth=self.depth + 1, begin=member.begin, end=member.end,
            )  # fmt: skip
            try:
                yield from inside.contents()
            except UnreadableError as error:
                yield Refused(inside.path, error)

    def is_wanted(self, name: str) -> bool:
        """Whether a member of an archive is read; what a source excludes of a folder, it excludes here."""
        return not is_excluded(name, self.source)

    def seekable(self) -> BinaryIO:
        """The file, in memory if it is a stream; raises `UnreadableError` if that is too much."""
        if self.file.seekable():
            return self.file
        return io.BytesIO(read_whole(self.file, LEAST_BUDGET * self.max_bytes))


_ROWS: dict[str, Callable[[Opened], Iterator[Row]]] = {
    "jsonl": lambda opened: json_lines(opened.file, opened.max_bytes, opened.part),
    "json": lambda opened: json_rows(opened.file, opened.max_bytes),
    "csv": lambda opened: csv_rows(opened.file, opened.max_bytes, opened.source.text_column),
    "arrow": lambda opened: arrow_rows(opened.seekable(), opened.source),
    "parquet": lambda opened: parquet_rows(opened.seekable(), opened.source, opened.part),
}
_ARCHIVES: dict[str, Callable[[Opened], Iterator[Member | Refused]]] = {
    "tar": lambda opened: tar_members(opened.file, opened.path, opened.is_wanted),
    "zip": lambda opened: zip_members(
        opened.seekable(), opened.path, opened.is_wanted, opened.budget, opened.max_bytes
    ),
}


def _format_of_content(head: bytes) -> str:
    """The format of a file whose name does not tell; "" if its first bytes do not either."""
    if head[257:262] == b"ustar":
        return "tar"
    if _HTML.match(head):
        return "html"
    if language_of_program(head[:200].decode("ascii", "replace")):
        return "code"
    return "latex" if _LATEX.search(head) else ""
