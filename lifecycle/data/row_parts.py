"""Parts of a large file of rows: whole lines of JSON Lines, whole row groups of Parquet.

A part is read by itself, by any process. It ends with the first line, or row group, that makes it large enough, so rows
that are added at a file's end leave the parts before the last as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 1 << 20  # bytes that are searched for line ends at a time


@dataclass(frozen=True)
class RowPart:
    """Some of a file's rows: the bytes that hold them, Parquet's row groups, and the number of rows before them."""

    begin: int
    end: int
    first_row: int
    num_rows: int
    groups: tuple[int, int] | None = None  # of Parquet: the first, and the one behind the last
    schema: str = ""  # of Parquet: its columns, which are written behind all groups


def row_parts(path: Path, format: str, size: int) -> list[RowPart]:
    """The parts of a file, of about so many bytes; none if it is to be read whole, or cannot be read at all."""
    try:
        parts = [*(_parquet_parts(path, size) if format == "parquet" else _line_parts(path, size))]
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
