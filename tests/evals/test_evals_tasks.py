"""Task configuration and rows: what is read, what is refused and with which words."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.core.config import ConfigError, load_config, validate
from lifecycle.core.progress import Progress, Silent
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.rows import local_rows, read_rows
from lifecycle.evals.subject import Subject
from lifecycle.evals.tasks import TaskConfig, TaskRow, register

CHOICE = {"query": "Which?", "choices": ["this", "that"], "gold": 1}


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def task(kind: str, rows: Path | str, **settings: Any) -> Any:
    return validate(TaskConfig, {"name": "t", "kind": kind, "rows": str(rows), **settings})


def test_tasks_are_a_few_lines_of_yaml(tmp_path: Path) -> None:
    text = "tasks:\n  - name: which\n    kind: multiple_choice\n    rows: '@rows/choices.jsonl'\n    limit: 5\n"
    (tmp_path / "run.yaml").write_text(text)
    tasks: Any = load_config(EvalConfig, tmp_path / "run.yaml").tasks
    (result,) = tasks
    assert (result.name, result.kind, result.limit, result.chat) == ("which", "multiple_choice", 5, True)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{"name": "t", "kind": "xyz", "rows": "x"}], r"tasks\.0: kind 'xyz' is not known; known: bits_per_byte, "),
        ([{"name": "t", "kind": "generat", "rows": "x"}], "did you mean 'generate'"),
        ([{"name": "t", "kind": "generate", "rows": "x", "per_byte": True}], r"tasks\.0\.per_byte: no such setting"),
        ([{"name": "t", "kind": "bits_per_byte", "rows": "x", "chat": False}], r"tasks\.0\.chat: no such setting"),
        (
            [{"name": "t", "kind": "generate", "rows": "x", "check": "exakt"}],
            r"tasks\.0\.check: .*did you mean 'exact'",
        ),
        ([{"name": "t", "kind": "generate", "rows": "x", "promt": "y"}], "promt: no such setting"),
        ([{"name": "../t", "kind": "generate", "rows": "x"}], "name"),
        ([{"name": "t", "kind": "generate", "rows": "x", "template": "{{"}], "not valid jinja2"),
        ([{"name": "t", "kind": "generate", "rows": "x"}] * 2, "two tasks are named 't'"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tasks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(EvalConfig, {"tasks": tasks})


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("bits_per_byte", {"txt": "a"}, "column `text`"),
        ("bits_per_byte", {"text": ""}, "column `text`"),
        ("multiple_choice", {"choices": ["a", "b"], "gold": 0}, "column `query`"),
        ("multiple_choice", {"query": "q", "choices": ["a"], "gold": 0}, "two texts or more"),
        ("multiple_choice", {"query": "q", "choices": ["a", "a"], "gold": 0}, "two choices are the same"),
        ("multiple_choice", {"query": "q", "choices": ["a", "b"], "gold": 2}, "from 0 to 1.*got 2"),
        ("multiple_choice", {"query": "q", "choices": ["a", "b"], "gold": True}, "got True"),
        ("generate", {"answer": "a"}, "column `prompt`"),
        ("generate", {"prompt": "p", "answer": []}, "column `answer`"),
        ("generate", "{broken", "not a JSON line"),
        ("generate", "[1]", "expected an object"),
        ("generate", '{"prompt": "\\ud800", "answer": "a"}', "surrogates not allowed"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, kind: str, row: Any, message: str) -> None:
    good = {"bits_per_byte": {"text": "x"}, "multiple_choice": CHOICE, "generate": {"prompt": "p", "answer": "a"}}
    path = write_rows(tmp_path / "rows.jsonl", good[kind], "", row)
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:3: .*{message}"):
        read_rows(task(kind, path), {})


def test_a_broken_regular_expression_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", {"prompt": "p", "answer": "(a"}, {"prompt": "q", "answer": "b"})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: .*'\(a' is not a regular expression"):
        read_rows(task("generate", path, check="regex"), {})
    assert len(read_rows(task("generate", path, check="contains"), {}).rows) == 2


def test_doubled_missing_and_too_few_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", CHOICE, CHOICE)
    with pytest.raises(ConfigError, match=r"1 of 2 rows .*rows\.jsonl:2: the same row as rows\.jsonl:1"):
        read_rows(task("multiple_choice", path), {})
    with pytest.raises(ConfigError, match="1 row"):
        read_rows(task("multiple_choice", write_rows(path, CHOICE)), {})
    with pytest.raises(ConfigError, match=r"no file .*none\.jsonl"):
        read_rows(task("multiple_choice", tmp_path / "none.jsonl"), {})


def test_rows_of_an_input_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "rows-123"
    folder.mkdir()
    write_rows(folder / "mc.jsonl", CHOICE, CHOICE | {"gold": 0})
    assert len(read_rows(task("multiple_choice", "@rows/mc.jsonl"), {"rows": folder}).rows) == 2
    with pytest.raises(ConfigError, match=r"no input 'row'; known: \['rows'\]"):
        read_rows(task("multiple_choice", "@row/mc.jsonl"), {"rows": folder})
    for outside in ("@rows/../x.jsonl", "@rows//etc/passwd"):
        with pytest.raises(ConfigError, match="point outside the artifact"):
            read_rows(task("multiple_choice", outside), {"rows": folder})


def test_changed_local_rows_change_the_evaluations_key(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mc.jsonl", CHOICE, CHOICE | {"gold": 0})
    config = EvalConfig(tasks=(task("multiple_choice", path), task("generate", "@rows/x.jsonl", name="other")))
    before = local_rows(config)
    assert list(before) == ["t"]
    write_rows(path, CHOICE, CHOICE | {"gold": 0, "note": "changed"})
    assert local_rows(config) != before


def test_documents_from_parquet_files(tmp_path: Path) -> None:
    for number in range(2):
        table = pa.table({"id": ["a", "b"], "text": [f"one {number}", f"two {number}"], "source": ["s", "s"]})
        pq.write_table(table, tmp_path / f"heldout-{number}.parquet")
    rows = read_rows(task("bits_per_byte", "@data/heldout-*.parquet"), {"data": tmp_path}).rows
    assert [row.columns["text"] for row in rows] == ["one 0", "two 0", "one 1", "two 1"]


def test_published_columns_from_parquet_files(tmp_path: Path) -> None:
    rows = [
        {"question": name, "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "key": "2", "id": 7} for name in "xy"
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    settings = {"query": "Q: {{ question }}", "choices": "{{ choices.text }}", "gold": "{{ choices.label.index(key) }}"}
    first, _ = read_rows(task("multiple_choice", tmp_path / "rows.parquet", map=settings), {}).rows
    assert {name: first.columns[name] for name in settings} == {"query": "Q: x", "choices": ["a", "b"], "gold": 1}
    assert set(first.columns) == {"query", "choices", "gold", "question", "key"}  # only the columns that are used
    with pytest.raises(ConfigError, match=r"has a column `query`; its columns: question, choices, key, id; say which"):
        read_rows(task("multiple_choice", tmp_path / "rows.parquet"), {})


def test_limit_takes_the_same_rows_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "answer": "a", "note": i} for i in range(40)]
    first = read_rows(task("generate", write_rows(tmp_path / "a.jsonl", *rows), limit=7), {}).rows
    again = read_rows(task("generate", write_rows(tmp_path / "b.jsonl", *reversed(rows)), limit=7), {}).rows
    assert len(first) == 7
    assert {row.id for row in first} == {row.id for row in again}
    assert [row.columns["note"] for row in first] == sorted(row.columns["note"] for row in first)


def test_definition_is_what_decides_a_score(tmp_path: Path) -> None:
    plain = task("generate", "a.jsonl")
    assert plain.definition == task("generate", "b.jsonl", limit=9, name="other").definition
    assert plain.definition == task("generate", "a.jsonl", head=9, max_unusable=0.5).definition
    few = task("generate", "a.jsonl", shots=1)
    assert few.definition == task("generate", "a.jsonl", shots=1, shots_from="b.jsonl").definition != plain.definition
    assert task("generate", "a.jsonl", map={"prompt": "{{ x }}"}).definition != plain.definition
    for change in ({"check": "contains"}, {"template": "{{ prompt }}?"}, {"chat": False}, {"max_tokens": 8}):
        assert plain.definition != task("generate", "a.jsonl", **change).definition
    assert task("multiple_choice", "a").definition != task("multiple_choice", "a", per_byte=False).definition


def test_templates(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", CHOICE | {"topic": "x"}, CHOICE | {"gold": 0})
    rows = read_rows(task("multiple_choice", path), {}).rows
    assert task("multiple_choice", path).prompt(rows[0]) == "Which?"
    made = task("multiple_choice", path, template="{{ topic }}: {{ query }} {{ choices | join(' or ') }}\n")
    assert made.prompt(rows[0]) == "x: Which? this or that\n"
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: .*'topic' is undefined"):
        made.prompt(rows[1])
    with pytest.raises(ConfigError, match="unsafe"):
        task("multiple_choice", path, template="{{ query.__class__.__mro__ }}").prompt(rows[0])


class TextLength(TaskConfig):
    """A kind of another package's."""

    columns = ("text",)
    longest: int = 3

    def problem(self, columns: Mapping[str, Any]) -> str:
        return "" if len(columns["text"]) <= self.longest else "too long"

    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        examples = [ScoredExample(id=row.id, score=len(row.columns["text"])) for row in rows]
        return summarise(self.name, self.kind, "length", self.definition, examples)


def test_another_package_adds_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.evals.tasks._KINDS", dict(TaskConfig.variants()))
    register("text_length", TextLength)
    path = write_rows(tmp_path / "rows.jsonl", {"text": "a"}, {"text": "bcd"})
    own = task("text_length", path, longest=3)
    subject: Any = None
    assert own.score(read_rows(own, {}).rows, subject, Silent()).mean == 2.0
    assert own.definition != task("text_length", path, longest=4).definition
    with pytest.raises(ConfigError, match=r"task 't': 1 of 2 rows .*rows\.jsonl:2: too long"):
        read_rows(task("text_length", path, longest=2), {})
    with pytest.raises(ValueError, match="'text_length' is registered already, as TextLength"):
        register("text_length", TaskConfig)


def test_definitions_are_those_of_earlier_results() -> None:
    """Results of versions that are registered already must stay comparable."""
    expected = {"bits_per_byte": "27a3133d42f8", "multiple_choice": "38ec5a345bfd", "generate": "28ecd1323145"}
    assert {kind: task(kind, "rows.jsonl").definition[:12] for kind in expected} == expected


def test_reading_tasks_imports_neither_jax_nor_statistics() -> None:
    code = (
        "import sys, lifecycle.evals.config, lifecycle.ops.config; print(*sorted({'jax', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
