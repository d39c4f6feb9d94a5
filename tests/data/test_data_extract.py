"""Extraction: every format, encodings, broken mark-up, and the reason for each file or row that cannot be used."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extraction import document, extract, skipped

from lifecycle.data.reading.raw import RawDocument, Skipped, raw_batch


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.txt", "plain\n", "text"),
        ("LICENSE", "plain\n", "text"),
        ("a.rst", "Title\n=====\n\n.. note:: kept\n", "rst"),
        ("a.py", "x = 1\n", "code"),
        ("a.md", "# Title\n\nText\n", "markdown"),
    ],
)
def test_formats_that_are_kept_as_they_are(tmp_path: Path, name: str, content: str, format: str) -> None:
    found = document(extract(tmp_path / name, content))
    assert (found.text, found.format, found.license, found.source, found.path) == (content, format, "MIT", "s", name)


@pytest.mark.parametrize(
    "markup",
    [
        "<html><head><title>Tit&eacute;</title><script>var x</script></head><body><h1>Head<p>One <b>two<p>three</body>",
        "<title>Tit&eacute;</title><h1>Head</h2><div><p>One <b>two</i></p></div></div></table><p>three",
    ],
)
def test_html_however_broken(tmp_path: Path, markup: str) -> None:
    found = document(extract(tmp_path / "a.html", markup))
    assert found.text.split() == ["Head", "One", "two", "three"]
    assert found.meta == {"title": "Tité"}


def test_html_keeps_the_lines_of_code_and_drops_navigation(tmp_path: Path) -> None:
    page = "<body><nav><a href=x>Menu</a></nav><article><p>Text of it.</p><pre>if x:\n    y\n</pre></article></body>"
    text = document(extract(tmp_path / "a.html", page)).text
    assert "if x:\n    y" in text and "Menu" not in text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.html", '<meta charset="windows-1251"><p>Привет, мир</p>'.encode("cp1251"), "Привет, мир"),
        ("a.html", '<meta charset="utf-8"><p>caf\xe9 '.encode("latin-1") + b"x" * 200, "caf\ufffd " + "x" * 200),
        ("a.txt", "naïve café".encode("utf-16"), "naïve café"),
        ("a.txt", b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("a.txt", "Un café agréable, fermé dès l'été.".encode("latin-1"), "Un café agréable, fermé dès l'été."),
        ("a.py", "# -*- coding: koi8-r -*-\nx = 'Мир'\n".encode("koi8-r"), "# -*- coding: koi8-r -*-\nx = 'Мир'\n"),
    ],
)  # fmt: skip
def test_encodings(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    assert document(extract(tmp_path / name, content)).text == text


@pytest.mark.parametrize(
    ("front", "meta"),
    [
        ("---\ntitle: A: B\n---\n", {}),  # not YAML: it stays in the text
        ("---\ntitle: Name\ndraft: true\ntags: [a, b]\n---\n", {"title": "Name", "draft": True}),
        ("---\ndate: 2024-01-02\n---\n", {"date": "2024-01-02"}),
        ("+++\ntitle = 'Name'\n+++\n", {"title": "Name"}),
        ("---\njust a rule\n---\n", {}),
    ],
)  # fmt: skip
def test_front_matter(tmp_path: Path, front: str, meta: dict[str, object]) -> None:
    found = document(extract(tmp_path / "a.md", f"{front}# Body\n"))
    assert found.meta == meta
    assert found.text == ("# Body\n" if meta else f"{front}# Body\n")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: CC-BY-4.0", "CC-BY-4.0"), ("license: ' '", "CC0-1.0"), ("license: [MIT, ISC]", "MIT AND ISC"),
        ("license: ISC # SPDX-License-Identifier: MIT", "MIT"), ("title: x", "CC0-1.0"),
    ],
)  # fmt: skip
def test_the_licence_in_front_matter(tmp_path: Path, front: str, license: str) -> None:
    found = document(extract(tmp_path / "a.md", f"---\n{front}\n---\n# Body\n", license="CC0-1.0"))
    assert found.license == license


def test_python_dict_gives_one_text_per_entry_and_runs_nothing(tmp_path: Path) -> None:
    module = (
        "raise SystemExit\n"
        "topics = {'a': r'''The \\\"a\\\" text''', 'b': 'one ' 'two', 'c': f(), 'd': ' '}\n"
        "other: dict = {'e': 'x'}\n"
    )
    found = extract(tmp_path / "topics.py", module, format="python_dict")
    assert [(d.path, d.text, d.format, d.meta) for d in found if isinstance(d, RawDocument)] == [
        ("topics.py#a", 'The \\"a\\" text', "text", {"key": "a"}),
        ("topics.py#b", "one two", "text", {"key": "b"}),
        ("topics.py#e", "x", "text", {"key": "e"}),
    ]
    assert skipped(extract(tmp_path / "b.py", "x = (", format="python_dict")).reason == "broken_python"
    assert skipped(extract(tmp_path / "c.py", "x = 1", format="python_dict")).reason == "no_text"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t", "empty"),
        ("a.txt", b"x" * 100_001, "too_large"),
        ("a.txt", b"text\0binary", "binary"),
        ("a.txt", bytes(range(128, 256)) * 9, "undecodable"),
        ("a.txt", gzip.compress(b"text " * 100, mtime=0).replace(b"\0", b"\1"), "undecodable"),
        ("a.dat", b"text", "unknown_format"),
        ("a.html", b"<html><body><script>x</script></body></html>", "no_text"),
        ("a.parquet", b"PAR1 not really", "broken_file"),
        ("a.jsonl", b"", "empty"),
    ],
)
def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    found = skipped(extract(tmp_path / name, content))
    assert (found.reason, found.path) == (reason, name)
    assert found.detail


def test_jsonl_uses_the_good_rows_and_lists_the_others(tmp_path: Path) -> None:
    rows = [
        '{"body": "one", "url": "u", "n": 3, "list": [1]}', "{broken", "", '["a list"]', '{"other": "x"}',
        '{"body": 5}', '{"body": " "}', json.dumps({"body": "y" * 100_001}), '{"body": "last \\ud800"}',
        '{"body": "' + "z" * 900_000 + '"}',
    ]  # fmt: skip
    found = extract(tmp_path / "a.jsonl", "\n".join(rows), text_column="body")
    assert [(d.path, d.text, d.meta) for d in found if isinstance(d, RawDocument)] == [
        ("a.jsonl:1", "one", {"url": "u", "n": 3}),
        ("a.jsonl:9", "last \ufffd", {}),
    ]
    assert [(s.path, s.reason) for s in found if isinstance(s, Skipped)] == [
        ("a.jsonl:2", "broken_row"),
        ("a.jsonl:4", "broken_row"),
        ("a.jsonl:5", "no_text_column"),
        ("a.jsonl:6", "no_text_column"),
        ("a.jsonl:7", "empty"),
        ("a.jsonl:8", "too_large"),
        ("a.jsonl:10", "too_large"),
    ]


def test_lone_surrogates_become_replacements_and_are_counted(tmp_path: Path) -> None:
    row = {"text": "lone \ud800 half, \udfff", "note": "kept \ud800"}
    found = document(extract(tmp_path / "a.jsonl", json.dumps(row)))
    assert (found.text, found.num_surrogates) == ("lone \ufffd half, \ufffd", 2)
    columns = raw_batch([found]).to_pylist()[0]
    assert columns["surrogates"] == 2 and json.loads(columns["meta"]) == {"note": "kept \ud800"}


def test_what_is_said_of_a_row_can_be_written(tmp_path: Path) -> None:
    found = extract(tmp_path / "a.jsonl", '{"\\ud800": 1}\n{"text": "a"}\n')
    assert [s.detail for s in found if isinstance(s, Skipped)] == ["no column 'text'; columns: \ufffd"]


def test_a_row_file_without_a_usable_row_is_reported_as_such(tmp_path: Path) -> None:
    damaged = extract(tmp_path / "a.jsonl", '{broken\n[]\n{"text": null}\n')
    assert [s.reason for s in damaged if isinstance(s, Skipped)] == [*["broken_row"] * 3, "no_text_column"]
    other = extract(tmp_path / "a.jsonl", '{broken\n{"body": "a"}\n')  # the setting is wrong, not the file
    assert [s.reason for s in other if isinstance(s, Skipped)] == ["broken_row", "no_text_column", "no_usable_row"]


def test_parquet_rows_with_their_format(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["<p>Hello <b>you", None], "lang": ["en", "en"]}), path)
    found = extract(path, path.read_bytes(), text_column="content", format="html")
    first, second = found
    assert isinstance(first, RawDocument) and isinstance(second, Skipped)
    assert (first.text, first.format, first.meta, first.path) == ("Hello you", "html", {"lang": "en"}, "a.parquet:1")
    assert (second.path, second.reason) == ("a.parquet:2", "broken_row")
    missing = skipped(extract(path, path.read_bytes()))
    assert missing.reason == "no_usable_row" and "content, lang" in missing.detail


@pytest.mark.parametrize("codec", ["undefined", "idna"])
def test_a_cookie_that_names_a_codec_for_something_else_does_not_stop_the_run(tmp_path: Path, codec: str) -> None:
    text = f"# -*- coding: {codec} -*-\nx = 1\n"
    assert document(extract(tmp_path / "a.py", text)).text == text


def test_what_is_longer_than_front_matter_is_text(tmp_path: Path) -> None:
    text = f"---\ntitle: {'x' * 99_994}{{}}\n---\nText.\n"  # 100,001 characters without the braces
    assert document(extract(tmp_path / "a.md", text.format("y"), max_bytes=200_000)).text == text.format("y")
    assert document(extract(tmp_path / "a.md", text.replace("x{}", ""), max_bytes=200_000)).text == "Text.\n"


@pytest.mark.parametrize("front", ["---\n{}\n---\n", "+++\na = {}\n+++\n"])
def test_front_matter_nested_beyond_the_stack_is_text(tmp_path: Path, front: str) -> None:
    text = front.format("[" * 5000) + "Text.\n"
    assert document(extract(tmp_path / "a.md", text)).text == text


def test_python_beyond_the_parsers_stack_is_skipped(tmp_path: Path) -> None:
    found = skipped(extract(tmp_path / "a.py", "x = " + "-" * 90_000 + "1\n", format="python_dict"))
    assert found.reason == "broken_python"
