"""Files of rows: the same rows from JSONL, a JSON list and Parquet, and what is broken told with its line."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.text.row_files import RowError, read_rows, write_rows

VALUES = st.recursive(
    st.text() | st.integers(-(2**53), 2**53) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=5)


@given(rows=ROWS, indent=st.sampled_from([None, 1, 4]))
def test_a_list_has_the_rows_of_lines_and_each_is_found_on_its_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "rows.jsonl", rows)
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    (folder / "rows.json").write_bytes(b" \n" + text.encode("utf-8", "surrogatepass"))
    assert [row for _, row in read_rows(folder / "rows.jsonl")] == rows
    found = list(read_rows(folder / "rows.json"))
    assert [row for _, row in found] == rows
    lines = (" \n" + text).split("\n")
    assert all(lines[line - 1].lstrip(" [").startswith("{") for line, _ in found)
    assert indent is None or [line for line, _ in found] == sorted({line for line, _ in found})


def test_parquet_has_what_json_has_without_the_nulls_of_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    messages = [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a", "name": "x"}]
    rows = [
        {"messages": messages, "tools": None, "score": 0.5},
        {"messages": messages[:1], "tools": "[]", "score": 2.0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_rows(path)) == [
        (1, {"messages": [{"role": "user", "content": "q"}, messages[1]], "score": 0.5}),
        (2, {"messages": [{"role": "user", "content": "q"}], "tools": "[]", "score": 2.0}),
    ]


def test_a_null_column_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "tools": null}\n')
    assert list(read_rows(path)) == [(1, {"text": "a"})]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"text": "a"},\n {"text": }]', r"rows:2: not valid JSON \(Expecting value at line 2, column 11\)"),
        ('[{"text": "a"},\n "b"]', "rows:2: expected an object with named columns, got str"),
        ('[{"text": "a"}\n {"text": "b"}]', "rows:2: not a JSON list: expected a comma"),
        ('[{"text": "a"}]\n{"text": "b"}', "text follows the end of its JSON list"),
        ('[{"text": "a"},', "rows:1: not valid JSON"),
        ('{"text": "a", "score": NaN}', "rows:1: not valid JSON .NaN is no JSON value.; correct the row"),
        ('[{"text": "a"}, {"score": -Infinity}]', "rows:1: not valid JSON .-Infinity is no JSON value."),
        ("[" * 100_000, "rows:1: "),
        ('{"score": 1' + "0" * 5000 + "}", "rows:1: not valid JSON .Exceeds the limit"),
        ("PAR1 and no more", "rows: not a whole Parquet file: .*; copy it again"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "rows"
    path.write_text(content)
    with pytest.raises(RowError, match=problem):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("value", "problem"),
    [(date(2024, 1, 2), "column day has a date"), (b"image", "has a bytes"), (float("nan"), "is nan, which JSON")],
)
def test_what_json_cannot_hold_is_told_with_its_row_and_column(tmp_path: Path, value: object, problem: str) -> None:
    pq.write_table(pa.Table.from_pylist([{"day": value}]), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=rf"rows\.parquet:1: column day.*{problem.removeprefix('column day')}"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("content", ['{"text": "a"}\r\n{"text": "b"}', '[{"text": "a"},\r\n{"text": "b"}]'])
def test_files_as_windows_writes_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows").write_bytes(content.encode("utf-8-sig"))
    assert list(read_rows(tmp_path / "rows")) == [(1, {"text": "a"}), (2, {"text": "b"})]


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[ ]\n")
    assert list(read_rows(tmp_path / "rows.json")) == []
