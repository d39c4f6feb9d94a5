"""Rows of files: JSON Lines, JSON arrays, CSV and TSV, Parquet, Arrow, each with its number and, of text, its bytes.

A row that is broken or too long is given as the error that it is, and the rows behind it are read. Memory holds one row
of a text file, of at most `line_limit` bytes, and of the others a batch.
"""

import csv
import io
import json
import math
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.decoding import encoding_of
from lifecycle.data.reading.json_arrays import json_array
from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.row_parts import RowPart
from lifecycle.data.reading.streams import CHUNK, lines

BATCH = 256  # Parquet rows at a time, fewer if they are long
BATCH_BYTES = 16 << 20
ARROW_FILE = b"ARROW1\0\0"
DELIMITERS = (",", "\t", ";", "|")
_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)  # of damaged files; the last of names of columns and zones
_DAY = timedelta(days=1)  # more than zones differ from UTC: nearer to the first and last year, no local time can be had


@dataclass(frozen=True)
class Row:
    """A row: its number from 1, its columns or what is wrong with it, and the bytes that it has in the file."""

    number: int
    columns: dict[str, Any] | UnreadableError
    begin: int | None = None
    end: int | None = None


def line_limit(max_bytes: int) -> int:
    """Bytes of a row, of which a text of `max_bytes` is a column: JSON makes up to three of a byte, and there are other
    columns. (Six of a control character.)"""
    return 4 * max_bytes + 65_536


def json_lines(file: BinaryIO, max_bytes: int, part: RowPart | None = None) -> Iterator[Row]:
    """The rows of JSON Lines, or of a part of them."""
    number, first, last = (part.first_row, part.begin, part.end) if part else (0, 0, math.inf)
    if part:
        file.seek(first)
    for begin, end, line in lines(file, line_limit(max_bytes), first, last):
        number += 1
        if isinstance(line, UnreadableError) or line.strip():
            yield Row(number, _json_row(line), begin, end)


def json_rows(file: io.BufferedReader, max_bytes: int) -> Iterator[Row]:
    """The rows of a JSON array of objects; of JSON Lines, which often have that name, if the file is none. Raises
    `UnreadableError` for other JSON."""
    head = file.peek(CHUNK).removeprefix(BOM_UTF8).lstrip()
    if head.startswith(b"["):
        for number, (begin, end, value) in enumerate(json_array(file, line_limit(max_bytes)), 1):
            yield Row(number, _json_row(value), begin, end)
        return
    first, newline, _ = head.partition(b"\n")
    if newline and not isinstance(_json_row(first), dict):
        raise UnreadableError("unknown_format", "neither an array of objects nor an object in each line")
    yield from json_lines(file, max_bytes)


def _json_row(data: bytes | UnreadableError) -> dict[str, Any] | UnreadableError:
    if isinstance(data, UnreadableError):
        return data
    try:
        row = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return UnreadableError("broken_row", f"not JSON: {error}")
    if not isinstance(row, dict):
        return UnreadableError("broken_row", f"a JSON {type(row).__name__} where an object is expected")
    return row


def csv_rows(file: io.BufferedReader, max_bytes: int, text_column: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file; the first line names the columns, and the sign between them is the one by which it
    names `text_column`. Raises `UnreadableError` for a file without that column."""
    head = file.peek(CHUNK)
    encoding, limit = encoding_of(head), line_limit(max_bytes)
    first = head.split(b"\n", 1)[0].decode(encoding, "replace").rstrip("\r")
    csv.field_size_limit(limit)
    source = _CsvLines(file, encoding, limit)
    records = csv.reader(source, delimiter=_delimiter(first, text_column))
    names, number = _names(records, text_column), 0
    if source.has_ended:
        raise UnreadableError("broken_file", f"a quote in the first line is never closed: {first[:200]!r}")
    while True:
        begin = source.at
        try:
            row = _csv_row(names, next(records))
        except StopIteration:
            return
        except csv.Error as error:
            row = UnreadableError("broken_row", f"not CSV: {error}")
        except UnreadableError as error:
            row = error
        if source.has_ended:
            what = f"a quote that is never closed: bytes {begin} to {source.at}, the file's end, are lost"
            row = UnreadableError("broken_row", what)
        if row:
            number += 1
            yield Row(number, row, begin, source.at)


def _delimiter(first: str, text_column: str) -> str:
    """The sign between the names in a first line; raises `UnreadableError` for one without `text_column`."""
    try:
        for sign in DELIMITERS:
            if text_column in next(csv.reader([first], delimiter=sign), ()):
                return sign
    except csv.Error:  # lines that end with a carriage return alone are one line
        raise UnreadableError("broken_file", "no line feed at the end of the first line: save it with LF") from None
    raise UnreadableError("no_text_column", f"no column {text_column!r} in the first line: {first[:200]!r}")


def _names(records: Iterator[list[str]], text_column: str) -> list[str]:
    """The names of the columns; raises `UnreadableError` for what is no CSV and for two that are `text_column`."""
    try:
        names = next(records)
    except csv.Error as error:
        raise UnreadableError("broken_file", f"the first line is not CSV: {error}") from None
    if names.count(text_column) > 1:
        raise UnreadableError("broken_file", f"{names.count(text_column)} columns are named {text_column!r}")
    return names


def _csv_row(names: list[str], fields: list[str]) -> dict[str, Any] | UnreadableError:
    """A row; empty for an empty line."""
    if not fields or len(fields) == len(names):
        return dict(zip(names, fields, strict=False))
    return UnreadableError("broken_row", f"{len(fields)} fields, and the first line has {len(names)}")


class _CsvLines:
    """The lines of a file as text; `at` is the offset behind the last one that was read. `has_ended`: whether one more
    was asked for, which a reader does at the end only inside quotes, or to give no further row."""

    def __init__(self, file: io.BufferedReader, encoding: str, limit: int) -> None:
        self.at, self.has_ended = 0, False
        self._lines, self._encoding = lines(file, limit), encoding

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Raises `UnreadableError` for a line that is lost."""
        try:
            _, self.at, line = next(self._lines)
        except StopIteration:
            self.has_ended = True
            raise
        if isinstance(line, UnreadableError):
            raise line
        return line.decode(self._encoding, "replace")


def parquet_rows(file: Path | BinaryIO, source: SourceConfig, part: RowPart | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, or of a part of it, with the columns that have plain values or a list of licences.
    Raises `UnreadableError` for a file that is none or has no text in the source's `text_column`."""
    try:
        opened = pq.ParquetFile(file)
        schema = opened.schema_arrow
    except _FAULTS as error:
        raise UnreadableError("broken_file", f"not a readable Parquet file: {error}") from None
    with opened:
        columns = _columns(schema, source)
        first = 0 if part is None else part.first_row
        groups = part.groups if part is not None and part.groups is not None else (0, opened.num_row_groups)
        for group in range(*groups):
            yield from _group_rows(opened, group, columns, first)
            first += opened.metadata.row_group(group).num_rows


def arrow_rows(file: BinaryIO, source: SourceConfig) -> Iterator[Row]:
    """The rows of an Arrow stream or file, as `datasets` keeps them, with the columns that `parquet_rows` gives. Raises
    `UnreadableError` as it does."""
    try:
        opened = pa.ipc.open_file(file) if file.read(len(ARROW_FILE)) == ARROW_FILE else None
        file.seek(0)
        reader = pa.ipc.open_stream(file) if opened is None else opened
    except _FAULTS as error:
        raise UnreadableError("broken_file", f"not a readable Arrow file: {error}") from None
    columns, number = _columns(reader.schema, source), 0
    try:
        for batch in _batches(reader):
            for row in _plain_rows(_whole(batch.select(columns))):
                number += 1
                yield Row(number, row)
    except _FAULTS as error:
        yield Row(number + 1, UnreadableError("broken_file", f"nothing from here on can be read: {error}"))


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose offsets lie in its buffers: of a damaged file they may lie anywhere. Raises `ArrowInvalid` for
    another one. Texts need not be UTF-8."""
    as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    columns = [column.view(as_bytes.get(column.type, column.type)) for column in batch.columns]
    pa.record_batch(columns, batch.schema.names).validate(full=True)
    return batch


def _batches(reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _columns(schema: pa.Schema, source: SourceConfig) -> list[str]:
    text_column = source.text_column
    try:
        kinds = {field.name: _value_type(field.type) for field in schema}
    except UnicodeDecodeError as error:
        raise UnreadableError("broken_file", f"the name of a column is not UTF-8: {error}") from None
    if text_column not in kinds:
        raise UnreadableError("no_usable_row", f"no column {text_column!r}; columns: {', '.join(kinds)}")
    if not _is_text(kinds[text_column]):
        raise UnreadableError("no_usable_row", f"column {text_column!r} has {kinds[text_column]} and no text")
    listed = {source.license_column} & {name for name, kind in kinds.items() if _is_texts(kind)}
    return [name for name, kind in kinds.items() if name == text_column or name in listed or _is_plain(kind)]


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _is_text(kind: pa.DataType) -> bool:
    tests = (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_binary, pt.is_large_binary, pt.is_binary_view)
    return any(test(kind) for test in tests)


def _is_texts(kind: pa.DataType) -> bool:
    return (pt.is_list(kind) or pt.is_large_list(kind)) and _is_text(_value_type(kind.value_type))


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pt.is_string, pt.is_large_string, pt.is_string_view, pt.is_boolean, pt.is_integer, pt.is_floating)
    return any(test(kind) for test in tests) or pt.is_timestamp(kind) or pt.is_date(kind)


def _group_rows(file: pq.ParquetFile, group: int, columns: list[str], first: int) -> Iterator[Row]:
    """The rows of a row group, and behind a fault each of its rows as lost."""
    about = file.metadata.row_group(group)
    batch_rows = min(BATCH, max(1, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
    number = first
    try:
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
            for row in _plain_rows(batch):
                number += 1
                yield Row(number, row)
    except _FAULTS as error:
        for lost in range(number + 1, first + about.num_rows + 1):
            yield Row(lost, UnreadableError("broken_row_group", f"row group {group}: {error}"))


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for row in pa.record_batch([_readable(column) for column in batch.columns], batch.schema.names).to_pylist():
        yield {name: _decoded(value) for name, value in row.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _readable(column: pa.Array) -> pa.Array:
    """A column whose values Python can have: a text's bytes, since Arrow does not check that they are UTF-8, and times
    as `_python_times` has them."""
    kind = _value_type(column.type)
    if _is_text(kind):
        return column.cast(pa.large_binary())
    if _is_texts(kind):
        return column.cast(pa.large_list(pa.large_binary()))
    return _python_times(column.cast(kind)) if pt.is_timestamp(kind) or pt.is_date(kind) else column


def _python_times(column: pa.Array) -> pa.Array:
    """Times and dates without nanoseconds, in UTC if nobody knows their zone, null outside the years 1 to 9999."""
    kind = column.type
    if pt.is_date(kind):
        return _between(column, date.min, date.max)
    unit = "us" if kind.unit == "ns" else kind.unit
    if kind.tz is None:
        return _between(column.cast(pa.timestamp(unit), safe=False), datetime.min, datetime.max)
    column = column.cast(pa.timestamp(unit, _known_zone(kind.tz)), safe=False)
    return _between(column, *(time.replace(tzinfo=UTC) for time in (datetime.min + _DAY, datetime.max - _DAY)))


def _known_zone(name: str) -> str:
    try:
        pa.scalar(0, pa.timestamp("s", name)).as_py()
    except (pa.ArrowInvalid, KeyError):  # the second where pytz is installed
        return "UTC"
    return name


def _between(column: pa.Array, low: date, high: date) -> pa.Array:
    """A column of times with null for those before `low` and after `high`."""
    is_later = pc.call_function("greater_equal", [column, pa.scalar(low, column.type)])
    is_earlier = pc.call_function("less_equal", [column, pa.scalar(high, column.type)])
    is_between = pc.call_function("and", [is_later, is_earlier])
    return pc.call_function("if_else", [is_between, column, pa.scalar(None, column.type)])
