"""Parts of a large file of rows: whole lines of JSON Lines, row groups of Parquet, mails of a mailbox, records of WARC.

A part is read by itself, by any process. It ends with the first row that makes it large enough, so rows that are added
at a file's end leave the parts before the last as they are. Other compressed files than WARC have no parts: where their
rows are is known only once they are decompressed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.reading.streams import GZIP, INPUT, BrokenStreamError, Budget, Members, inner_name

CHUNK = 1 << 20  # bytes that are searched for line ends at a time
STORED = 65_535  # bytes of a block that is not compressed
# Behind an empty line; a sentence that begins so has no time of day and year (RFC 4155, appendix A).
MAIL_BEGIN = re.compile(rb"(?:(?<=\n\n)|(?<=\n\r\n))From [^\n]*\d\d:\d\d[^\n]*\d{4}")


@dataclass(frozen=True)
class RowPart:
    """Some of a file's rows: the bytes that hold them, Parquet's row groups, and the number of rows before them.

    Rows are named by their numbers, from `first_row` + 1 on. Records of WARC are named by their offsets, and how many
    there are is not known before they are read: the first one stands for all.
    """

    begin: int
    end: int
    first_row: int
    num_rows: int
    groups: tuple[int, int] | None = None  # of Parquet: the first, and the one behind the last
    schema: str = ""  # of Parquet: its columns, which are written behind all groups


def row_parts(path: Path, format: str, size: int) -> list[RowPart]:
    """The parts of a file, of about so many bytes; none if it is to be read whole, or cannot be read at all."""
    cut = _CUTS.get((format, inner_name(path.name)[1]))
    if cut is None:
        return []
    try:
        parts = [*cut(path, size)]
    except (OSError, pa.ArrowException):
        return []
    return parts if len(parts) > 1 else []


def _line_parts(path: Path, size: int) -> Iterator[RowPart]:
    begin = first_row = at = rows = 0
    has_end = True
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            start = 0
            while at + len(chunk) - begin >= size:
                cut = chunk.find(b"\n", max(start, begin + size - at - 1)) + 1
                if not cut:
                    break
                rows += chunk.count(b"\n", start, cut)
                yield RowPart(begin, at + cut, first_row, rows)
                begin, first_row, rows, start = at + cut, first_row + rows, 0, cut
            rows += chunk.count(b"\n", start)
            at += len(chunk)
            has_end = chunk.endswith(b"\n")
    if at > begin:
        yield RowPart(begin, at, first_row, rows + (not has_end))


def _parquet_parts(path: Path, size: int) -> Iterator[RowPart]:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows, schema = [0, *accumulate(group.num_rows for group in groups)], str(metadata.schema)
    first = held = 0
    for number, group in enumerate(groups):
        held += sum(group.column(place).total_compressed_size for place in range(group.num_columns))
        if held >= size or number == len(groups) - 1:
            behind = number + 1
            end = _first_byte(groups[behind]) if behind < len(groups) else path.stat().st_size
            num_rows = rows[behind] - rows[first]
            yield RowPart(_first_byte(groups[first]), end, rows[first], num_rows, (first, behind), schema)
            first, held = behind, 0


def _first_byte(group: pq.RowGroupMetaData) -> int:
    columns = (group.column(place) for place in range(group.num_columns))
    return min(column.dictionary_page_offset or column.data_page_offset for column in columns)


def _mail_parts(path: Path, size: int) -> Iterator[RowPart]:
    begin = first = number = 0
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for number, found in enumerate(MAIL_BEGIN.finditer(data), 1):  # the first mail begins with the file
            if found.start() - begin >= size:
                yield RowPart(begin, found.start(), first, number - first)
                begin, first = found.start(), number
        yield RowPart(begin, len(data), first, number + 1 - first)


def _record_parts(path: Path, size: int) -> Iterator[RowPart]:
    begin = 0
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        at = data.find(GZIP, size)
        while at >= 0:
            if _is_record(file, at, len(data)):
                yield RowPart(begin, at, begin - 1, 1)
                begin, at = at, at + size
            at = data.find(GZIP, at + 1)
        yield RowPart(begin, len(data), begin - 1, 1)


def _is_record(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a gzip member with a WARC record begins here. What looks like one may be an archive in the archive that
    DEFLATE has stored as it is. Then another block begins at most 65,535 bytes behind (RFC 1951, section 3.2.4), and
    what is read to there is broken."""
    file.seek(at)
    members = Members(file, "gzip", Budget(size, 1), at, is_joined=False)
    try:
        if not members.read(INPUT).startswith(b"WARC/"):
            return False
        while members.is_open and members.start - at <= STORED:
            members.advance()
    except BrokenStreamError:
        return False
    return True


_CUTS: dict[tuple[str, str | None], Callable[[Path, int], Iterator[RowPart]]] = {
    ("jsonl", None): _line_parts, ("parquet", None): _parquet_parts, ("mbox", None): _mail_parts,
    ("warc", "gzip"): _record_parts,
}  # fmt: skip
