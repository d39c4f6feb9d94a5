"""Files of rows: JSONL, a JSON list, or Parquet, told apart by their content.

What must hold: a row is a mapping of column names to JSON values, whichever file it is from, and an error names the
file and the line: of JSON the one on which the row begins, of Parquet the row's number from 1. A column that is null
is not there, as in files written from tables; so is a null member inside a Parquet row, whose columns have one
structure for all rows (Hugging Face `datasets` writes the missing keys of messages as nulls).
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PARQUET = b"PAR1"
BATCH = 1024  # Parquet rows in memory at once

type RowData = Mapping[str, Any]


class RowError(ValueError):
    """A broken row; the message names the file and the line."""


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a file; empty lines are skipped, and columns that are null left out.

    Raises `RowError` with file and line for anything but objects with JSON values.
    """
    if not path.is_file():
        raise RowError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(64).removeprefix(BOM_UTF8)
    read = _parquet if head.startswith(PARQUET) else _json_list if head.lstrip()[:1] == b"[" else _lines
    for number, row in read(path):
        yield number, {name: value for name, value in row.items() if value is not None}


def write_rows(path: Path, rows: Iterable[RowData]) -> None:
    """Writes rows as JSONL."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line; raises `RowError`, beginning with `where`, for anything else."""
    text = _text(line, where)
    try:
        return _object(_DECODER.decode(text), where)
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); one object a line") from None
    except _UNREADABLE as error:
        raise RowError(f"{where}: not valid JSON ({error}); correct the row") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_row(line, f"{path}:{number}")


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON list, decoded one by one, so that each has its line."""
    text = _text(path.read_bytes(), str(path))
    at, line, counted = text.index("[") + 1, 1, 0
    at = _next(text, at)
    if text[at : at + 1] == "]":
        _require_end(text, at, path)
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        row, at = _decoded(text, at, f"{path}:{line}")
        yield line, row
        at = _next(text, at)
        if text[at : at + 1] == "]":
            _require_end(text, at, path)
            return
        if text[at : at + 1] != ",":
            line += text.count("\n", counted, at)
            raise RowError(f"{path}:{line}: not a JSON list: expected a comma or ] after a row; one list of objects")
        at = _next(text, at + 1)


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield number, {name: _plain(value, f"{path}:{number}: column {name}") for name, value in row.items()}
    except (OSError, pa.ArrowException) as error:
        raise RowError(f"{path}: not a whole Parquet file: {str(error).partition(chr(10))[0]}; copy it again") from None


def _plain(value: Any, where: str) -> Any:
    """A Parquet value as JSON's; members that are null are left out."""
    if isinstance(value, dict):
        return {str(name): _plain(part, where) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part, where) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise RowError(f"{where} is {value}, which JSON has no word for; correct it")
        return value
    raise RowError(f"{where} has a {type(value).__name__}; rows have what JSON has: text, numbers, lists, mappings")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")  # Python reads NaN and Infinity


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_UNREADABLE = (ValueError, RecursionError)  # integers of thousands of digits, values too deep within each other


def _decoded(text: str, at: int, where: str) -> tuple[dict[str, Any], int]:
    """The row that begins at a position of a JSON list, and the position behind it."""
    try:
        row, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise RowError(f"{where}: not valid JSON ({place}); one list of objects") from None
    except _UNREADABLE as error:
        raise RowError(f"{where}: not valid JSON ({error}); correct the row") from None
    return _object(row, where), end


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"{where}: expected an object with named columns, got {type(row).__name__}")
    return row


def _next(text: str, at: int) -> int:
    """The first position from `at` on that is no space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _require_end(text: str, at: int, path: Path) -> None:
    if _next(text, at + 1) < len(text):
        raise RowError(f"{path}: text follows the end of its JSON list; a file of rows is one list, or JSONL")
