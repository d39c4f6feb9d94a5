"""Files of rows: each kind, compressed and plain; broken and huge rows; what of a row becomes what of its document."""

import csv
import gzip
import io
import json
import tracemalloc
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extraction import document, documents, extract, extract_path, reasons, refused, skipped
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading import json_arrays
from lifecycle.data.reading.json_arrays import json_array
from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.row_readers import arrow_rows, csv_rows, parquet_rows

ROWS = [{"text": f"line {number} \u00e9", "n": number} for number in range(5000)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def table_text(rows: list[dict[str, Any]], delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"".join(LINES)),
        ("a.jsonl.gz", gzip.compress(b"".join(LINES[:2000])) + gzip.compress(b"".join(LINES[2000:]))),
        ("a.ndjson.zst", zstd(b"".join(LINES[:10])) + zstd(b"".join(LINES[10:]))),
        ("a.json.gz", gzip.compress(b"".join(LINES))),  # JSON Lines under that name are common
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.csv", table_text(ROWS, ",").encode()),
        ("a.csv.gz", gzip.compress(table_text(ROWS, ";").encode())),
        ("a.tsv", b"\xef\xbb\xbf" + table_text(ROWS, "\t").encode()),
        ("a.csv", table_text(ROWS, ",").encode("cp1252")),
    ],
)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    found = documents(extract(tmp_path / name, content))
    assert [entry.text for entry in found] == [row["text"] for row in ROWS]
    assert [entry.path for entry in found] == [f"{name}:{number}" for number in range(1, 5001)]
    assert all(str(entry.meta["n"]) == str(row["n"]) for entry, row in zip(found, ROWS, strict=True))
    if name.startswith("a.json"):
        plain = gzip.decompress(content) if name.endswith("gz") else content
        assert all(json.loads(plain[entry.begin : entry.end])["text"] == entry.text for entry in found)


def test_a_row_has_its_own_address_time_and_licence(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "url": "https://example.org/a", "license": "CC-BY-4.0", "created": 1704164645, "n": 1},
        {"text": "b", "url": "no address", "license": " ", "date": "yesterday", "timestamp": "2024-01-02"},
        {"text": "c", "url": None, "license": ["MIT"], "date": "Tue, 02 Jan 2024 03:04:05 +0100"},
    ]
    own = [(d.url, d.time, d.license, d.meta) for d in documents(extract(tmp_path / "a.json", json.dumps(rows)))]
    assert own == [
        ("https://example.org/a", "2024-01-02T03:04:05Z", "CC-BY-4.0", {"n": 1}),
        (None, "2024-01-02", "MIT", {"url": "no address", "license": " ", "date": "yesterday"}),
        (None, "2024-01-02T02:04:05Z", "MIT", {}),
    ]
    settings = {"url_column": "link", "license_column": "rights", "time_columns": ["seen"]}
    other = {"text": "a", "link": "ftp://a.b/c", "rights": "Apache-2.0", "seen": "2024-01-02T03:04:05.5", "url": "u"}
    found = document(extract(tmp_path / "b.jsonl", json.dumps(other), **settings))
    assert (found.url, found.license, found.time) == ("ftp://a.b/c", "Apache-2.0", "2024-01-02T03:04:05")
    assert found.meta == {"url": "u"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_all_licences_of_a_list_apply(tmp_path: Path, kind: str) -> None:
    listed = [["MIT", "GPL-2.0-only OR ISC", "MIT"], ["A OR B", None], [], None]
    table = pa.table({"text": ["a", "b", "c", "d"], "licenses": listed, "tags": listed})
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    elif kind == "arrow":
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))
    found = documents(extract(file, file.read_bytes(), license="CC0-1.0", license_column="licenses"))
    assert [entry.license for entry in found] == ["MIT AND (GPL-2.0-only OR ISC)", "A OR B", "CC0-1.0", "CC0-1.0"]
    assert all(entry.meta == {} for entry in found)


def test_rows_with_the_same_id_are_all_read(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "one"}, {"id": 7, "text": "two"}, {"id": 7, "text": "two"}]
    found = documents(extract(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [(entry.text, entry.path, entry.meta) for entry in found] == [
        (row["text"], f"a.jsonl:{number}", {"id": 7}) for number, row in enumerate(rows, 1)
    ]


def test_nul_bytes_in_a_row_are_characters_and_in_a_broken_one_none(tmp_path: Path) -> None:
    content = b'{"text": "a\\u0000b"}\n{"text": "a\0b"}\n{"text": "c"}\n'
    found = extract(tmp_path / "a.jsonl", content)
    assert [entry.text for entry in documents(found)] == ["a\0b", "c"]
    assert reasons(found) == [("a.jsonl:2", "broken_row")]


def test_of_a_broken_gzip_file_the_other_rows_are_read(tmp_path: Path) -> None:
    members = [bytearray(gzip.compress(b"".join(LINES[at : at + 1000]))) for at in range(0, 5000, 1000)]
    members[2][len(members[2]) // 2] ^= 255
    found = extract(tmp_path / "a.jsonl.gz", b"".join(members), max_bytes=1000)
    good = {entry.text for entry in documents(found)}
    assert {row["text"] for row in ROWS[:2000] + ROWS[3000:]} <= good and 4000 < len(documents(found)) < 5000
    (fault,) = refused(found)
    assert fault.reason == "broken_compression" and "reading goes on at byte" in fault.detail
    assert fault.path == f"a.jsonl.gz:{len(documents(found)) - 2000 + 1}"  # the row that it cuts


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "', b'"}\n{"text": "b"}\n'),
        ("a.json", b'[{"text": "a"}, {"text": "', b'"}, {"text": "b"}]'),
        ("a.csv", b'text\na\n"', b'"\nb\n'),
    ],
)
def test_a_row_of_200_mb_takes_little_memory(tmp_path: Path, name: str, begin: bytes, end: bytes) -> None:
    path, max_bytes = tmp_path / name, 1_000_000
    with path.open("wb") as file:
        file.write(begin)
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(end)
    tracemalloc.start()
    found = extract_path(path, max_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.text for entry in documents(found)] == ["a", "b"]
    assert reasons(found) == [(f"{name}:2", "too_large")]
    assert peak < 12 * max_bytes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(['"', "\\", "[,]", '\\"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_an_array_is_cut_into_its_values(values: list[Any], chunk: int, indent: int | None, is_ascii: bool) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "CHUNK", chunk)
        found = list(json_array(io.BufferedReader(io.BytesIO(data)), 10**6))
    assert [json.loads(value) for _, _, value in found if isinstance(value, bytes)] == values
    assert all(data[begin:end] == value for begin, end, value in found)


@pytest.mark.parametrize(
    ("content", "texts", "wrong"),
    [
        ('[{"text": "a"}, {"text": "b"', ["a"], [("a.json:2", "broken_row")]),
        ('[{"text": "a"}] and more', ["a"], [("a.json:2", "broken_row")]),
        (
            '[{"text": "a"}, 5, {"text": b}, {"text": "c"},]', ["a", "c"],
            [("a.json:2", "broken_row"), ("a.json:3", "broken_row")],
        ),
        ("[]", [], [("a.json", "empty")]),
        ('{\n "name": "package",\n "version": 1\n}', [], [("a.json", "unknown_format")]),
        ('{"name": "package"}', [], [("a.json:1", "no_text_column"), ("a.json", "no_text_column")]),
        ('[{"name": "package"}]', [], [("a.json:1", "no_text_column"), ("a.json", "no_text_column")]),
    ],
)  # fmt: skip
def test_json_that_is_broken_or_something_else(
    tmp_path: Path, content: str, texts: list[str], wrong: list[tuple[str, str]]
) -> None:
    found = extract(tmp_path / "a.json", content)
    assert [entry.text for entry in documents(found)] == texts and reasons(found) == wrong


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=9)


@given(st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=9), st.sampled_from(",;\t|"))
def test_csv_gives_the_fields_that_were_written(rows: list[tuple[str, str]], delimiter: str) -> None:
    data = table_text([{"text": text, "other": other} for text, other in rows], delimiter).encode()
    found = list(csv_rows(io.BufferedReader(io.BytesIO(data)), 10_000, "text"))
    assert [row.columns for row in found] == [{"text": text, "other": other} for text, other in rows]
    assert [row.begin for row in found][1:] == [row.end for row in found][:-1] and found[-1].end == len(data)


def test_csv_uses_the_good_rows_and_lists_the_others(tmp_path: Path) -> None:
    content = "id,text\n1,one\n2\n3,three,more\n\n4,four\n" + f'5,"{"x" * 500_000}"\n6,six\n7,"never ends\n8,eight\n'
    found = extract(tmp_path / "a.csv", content)
    assert [entry.text for entry in documents(found)] == ["one", "four", "six"]
    assert reasons(found) == [
        ("a.csv:2", "broken_row"), ("a.csv:3", "broken_row"), ("a.csv:5", "too_large"), ("a.csv:7", "broken_row"),
    ]  # fmt: skip
    last = refused(found)[-1].detail
    begin = content.index("7,")
    assert f"a quote that is never closed: bytes {begin} to {len(content)}, the file's end, are lost" in last


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("id,body\n1,one\n", "no_text_column"),
        ("text\n1\n".encode("utf-16"), "undecodable"),
        (b"text\n\0\0\n", "undecodable"),
        ("", "no_text_column"),
        ("text\n", "empty"),
        ("text\rone\rtwo\r", "broken_file"),
        ("text,n,text\none,1,two\n", "broken_file"),
        ('text,"a\nb",c\rd\n', "broken_file"),
        ('text,"label\none,1\ntwo,2\n', "broken_file"),
    ],
)
def test_csv_files_without_text(tmp_path: Path, content: str | bytes, reason: str) -> None:
    assert skipped(extract(tmp_path / "a.csv", content)).reason == reason


@pytest.mark.parametrize(
    ("kind", "values", "times"),
    [
        (pa.timestamp("s"), [10**12, -(10**11), 1704164645], [None, None, "2024-01-02T03:04:05"]),
        (pa.timestamp("ns"), [10**18], ["2001-09-09T01:46:40"]),
        (pa.timestamp("us", "Mars/Phobos"), [1704164645 * 10**6], ["2024-01-02T03:04:05Z"]),
        (pa.timestamp("s", "Asia/Tokyo"), [253402300799, -62135596800], [None, None]),  # 9999 and 1 in UTC
        (pa.date32(), [10**7, -(10**7), 19724], [None, None, "2024-01-02"]),
        (pa.date64(), [86_400_000 * 10**7, 86_400_000 * 19724], [None, "2024-01-02"]),
    ],
)
def test_times_that_python_does_not_have_are_none(
    tmp_path: Path, kind: pa.DataType, values: list[int], times: list[str | None]
) -> None:
    table = pa.table({"text": ["a"] * len(values), "date": pa.array(values, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert [entry.time for entry in documents(extract_path(tmp_path / name))] == times


def test_numbers_that_json_does_not_have_are_no_metadata(tmp_path: Path) -> None:
    text = f"---\na: .nan\nb: -.inf\nc: 0x{'f' * 6000}\nd: {'9' * 4000}\ne: 1.5\n---\ntext\n"
    assert document(extract(tmp_path / "a.md", text)).meta == {"d": int("9" * 4000), "e": 1.5}
    rows = documents(extract(tmp_path / "a.jsonl", '{"text": "a", "x": NaN, "y": -Infinity, "z": 2}'))
    assert [row.meta for row in rows] == [{"z": 2}]


def test_parquet_columns_of_all_kinds(tmp_path: Path) -> None:
    time = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    table = pa.table({
        "text": pa.array([b"one", b"t\xffwo"], pa.binary()),
        "created": pa.array([time, None], pa.timestamp("ns", "UTC")),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "vector": pa.array([[1.0] * 8] * 2),
        "image": pa.array([b"\xff", b""], pa.binary()),
        "score": [0.5, None],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = documents(extract_path(tmp_path / "a.parquet"))
    assert (first.text, first.time, first.meta) == ("one", "2024-01-02T03:04:05Z", {"kind": "a", "score": 0.5})
    assert (second.text, second.time, second.begin, second.meta) == ("t\ufffdwo", None, None, {"kind": "b"})
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    assert "int64 and no text" in skipped(extract_path(tmp_path / "b.parquet")).detail


@pytest.mark.parametrize("open_writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_as_datasets_keeps_them(tmp_path: Path, open_writer: Any) -> None:
    table = pa.table({"text": [f"text {number}" for number in range(30)], "url": ["https://example.org"] * 30})
    path = tmp_path / "data-00000-of-00001.arrow"
    with open_writer(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    found = documents(extract_path(path))
    assert [(entry.text, entry.url) for entry in found] == [(f"text {n}", "https://example.org") for n in range(30)]
    broken = extract(path, path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert reasons(broken)[-1][1] == "broken_file" and len(documents(broken)) in (0, 10, 20)
    assert skipped(extract(path, b"nothing of the kind")).reason == "broken_file"


def test_a_broken_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"text {number}" for number in range(30)]}), path, row_group_size=10, compression="zstd"
    )
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    found = extract(path, bytes(data))
    assert [entry.text for entry in documents(found)] == [f"text {number}" for number in [*range(10), *range(20, 30)]]
    assert reasons(found) == [(f"a.parquet:{number}", "broken_row_group") for number in range(11, 21)]


def arrow_files() -> dict[str, bytes]:
    table = pa.table({
        "text": ["h\u00e9llo"] * 8, "kind": pa.array(["a", "b"] * 4).dictionary_encode(),
        "date": pa.array([1] * 8, pa.timestamp("s", "UTC")), "l": pa.array(["x"] * 8, pa.large_string()),
    })  # fmt: skip
    parquet, file, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    for sink, opened in ((file, pa.ipc.new_file), (stream, pa.ipc.new_stream)):
        with opened(sink, table.schema) as writer:
            writer.write_table(table, 3)
    return {"parquet": parquet.getvalue(), "file": file.getvalue(), "stream": stream.getvalue()}


ARROW_FILES = arrow_files()


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(ARROW_FILES)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)
)
def test_a_damaged_arrow_file_gives_rows_or_reasons(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(ARROW_FILES[kind])
    for at, byte in changes:
        data[at % len(data)] = byte
    with suppress(UnreadableError):
        read = parquet_rows if kind == "parquet" else arrow_rows
        for row in read(io.BytesIO(bytes(data)), SourceConfig(name="s", path="p")):
            assert isinstance(row.columns, dict | UnreadableError)


@pytest.mark.parametrize("name", ["te\ufffdt", "UTC"])
def test_names_in_an_arrow_file_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    stream = io.BytesIO()
    table = pa.table({"text": ["a"], "te\ufffdt": pa.array([1], pa.timestamp("s", "UTC"))})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    damaged = stream.getvalue().replace(name.encode(), b"\xff" * len(name.encode()))
    assert set(reasons(extract(tmp_path / "a.arrow", damaged))) <= {
        ("a.arrow", "broken_file"), ("a.arrow:1", "broken_file"), ("a.arrow", "no_text_column"),
    }  # fmt: skip
