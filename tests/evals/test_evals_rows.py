"""Which rows of a task are scored: faulty, doubled and contradicting ones, the first ones, and solved examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.rows import TaskRows, local_rows, read_rows
from lifecycle.evals.tasks import TaskConfig


def choice(number: int, **columns: Any) -> dict[str, Any]:
    return {"query": f"q{number}", "choices": ["a", "b"], "gold": number % 2} | columns


GOOD = [choice(number) for number in range(40)]
FAULTS: list[tuple[Any, str]] = [
    (choice(1, query="x", choices=["a", "a"]), "two choices are the same"),
    (choice(2, query="x", gold=2), "from 0 to 1"),
    (choice(3, query=None), "column `query` with text"),
    (choice(3, query=" "), "the prompt is empty"),
    (choice(4, query="x", choices=["a", ""]), "column `choices`"),
    ({"query": "x", "choices": ["a", "b"]}, "column `gold`"),
    ("{broken", "not a JSON line"),
    ("[1]", "expected an object"),
    (choice(7), "the same row as rows.jsonl:8"),
]


def read(tmp_path: Path, rows: list[Any], kind: str = "multiple_choice", **settings: Any) -> TaskRows:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_rows(validate(TaskConfig, {"name": "t", "kind": kind, "rows": str(path), **settings}), {})


def test_faulty_rows_are_skipped_and_named(tmp_path: Path) -> None:
    found = read(tmp_path, [*GOOD, *(row for row, _ in FAULTS)], max_unusable=0.2)
    assert [row.columns["query"] for row in found.rows] == [row["query"] for row in GOOD]
    assert len(found.skipped) == len(FAULTS)
    for number, (line, (_, fault)) in enumerate(zip(found.skipped, FAULTS, strict=True), 41):
        assert line.startswith(f"rows.jsonl:{number}: ") and fault in line
    assert found.notes == [
        "9 of 49 rows cannot be used and are skipped; first: rows.jsonl:41: two choices are the same"
    ]


def test_too_many_faulty_rows_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    rows = [*GOOD, *(choice(number, choices=["a", "a"]) for number in range(50, 55))]
    with pytest.raises(ConfigError, match=r"5 of 45 rows .*max_unusable=0\.05: .*s\.jsonl:41: two.*:42: .*:43: [^:]*$"):
        read(tmp_path, rows)
    assert len(read(tmp_path, rows[:42]).skipped) == 2  # 2 of 42: a smaller share
    with pytest.raises(ConfigError, match=r"1 row.* at least two"):
        read(tmp_path, [*GOOD[:1], *rows[40:]], max_unusable=1)


def test_a_column_that_no_row_has_is_a_mistake_of_the_task(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "gold": 0}] * 3
    with pytest.raises(ConfigError, match=r"no row of .*rows\.jsonl has a column `query`; its columns: question, choi"):
        read(tmp_path, rows, max_unusable=1)
    with pytest.raises(ConfigError, match=r"a column `qestion`; its columns: question, .*; correct map\.query"):
        read(tmp_path, rows, map={"query": "{{ qestion }}"})
    with pytest.raises(ConfigError, match=r"a column `topic`; its columns: question, .*; correct template"):
        read(tmp_path, rows, map={"query": "{{ question }}"}, template="{{ topic }} {{ query }}")


def test_a_column_that_a_template_can_do_without_may_be_missing(tmp_path: Path) -> None:
    template = "{% if hint is defined %}{{ hint }} {% endif %}{{ query }}"
    found = read(tmp_path, GOOD, template=template)
    assert len(found.rows) == 40 and found.skipped == []


def test_a_row_that_the_templates_cannot_read_is_faulty(tmp_path: Path) -> None:
    rows = [row | {"topic": "t", "key": {"x": 1}} for row in GOOD] + [choice(50, key={}), choice(51, key={"x": 1})]
    found = read(tmp_path, rows, template="{{ topic }}: {{ query }}", map={"gold": "{{ key.x }}"})
    assert found.skipped == [
        "rows.jsonl:41: map.gold: 'dict object' has no attribute 'x'; columns: query, choices, gold, key",
        "rows.jsonl:42: template: 'topic' is undefined; columns: query, choices, gold, key",
    ]


def test_rows_that_differ_in_the_right_answer_alone_are_scored_and_named(tmp_path: Path) -> None:
    found = read(tmp_path, [*GOOD, choice(3, gold=0)])
    assert len(found.rows) == 41 and found.skipped == []
    assert found.doubtful == ["rows.jsonl:41: the same row as rows.jsonl:4, but for `gold`"]
    assert "1 of 41 rows contradict another row; first: rows.jsonl:41" in found.notes[0]
    asked = [{"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": "b"}]
    assert len(read(tmp_path, asked, kind="generate").doubtful) == 1
    assert read(tmp_path, [{"text": "a"}, {"text": "b"}], kind="bits_per_byte").doubtful == []


def test_rows_that_differ_in_what_the_template_reads_are_different(tmp_path: Path) -> None:
    rows = [choice(1, topic=topic) for topic in ("a", "b", "b")] + [choice(2, topic="c"), choice(3, topic="c")]
    found = read(tmp_path, rows, template="{{ topic }} {{ query }}", max_unusable=0.2)
    assert [row.columns["topic"] for row in found.rows] == ["a", "b", "c", "c"]
    assert found.skipped == ["rows.jsonl:3: the same row as rows.jsonl:2"] and found.doubtful == []


def test_head_takes_the_first_rows(tmp_path: Path) -> None:
    assert [row.columns["query"] for row in read(tmp_path, GOOD, head=3).rows] == ["q0", "q1", "q2"]
    with pytest.raises(ConfigError, match=r"limit .* and head .* exclude each other"):
        read(tmp_path, GOOD, head=3, limit=3)
    described = TaskConfig.model_fields["limit"].description
    assert described is not None and "hash" in described


@pytest.mark.parametrize("chosen", [{}, {"head": 5}, {"limit": 5}])
def test_without_another_file_the_last_rows_are_examples_and_not_scored(tmp_path: Path, chosen: dict[str, Any]) -> None:
    rows = read(tmp_path, GOOD, shots=3, **chosen).rows
    assert len(rows) == (5 if chosen else 37)
    assert all([shot.columns["query"] for shot in row.shots] == ["q37", "q38", "q39"] for row in rows)
    assert not {row.columns["query"] for row in rows} & {"q37", "q38", "q39"}
    assert {row.id for row in rows}.isdisjoint(row.id for row in read(tmp_path, GOOD).rows)  # another prompt
    with pytest.raises(ConfigError, match=r"0 row\(s\) in .* after 50 for its prompts"):
        read(tmp_path, GOOD, shots=50)


def test_examples_of_another_file_are_its_first_rows_that_are_not_scored(tmp_path: Path) -> None:
    examples = tmp_path / "examples.jsonl"
    lines = [choice(1), choice(90), "{broken", choice(91), choice(92)]
    examples.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    use: Any = {"shots": 2, "shots_from": str(examples), "max_unusable": 0.2}
    for row in read(tmp_path, GOOD, **use).rows:
        assert [shot.columns["query"] for shot in row.shots] == ["q90", "q91"]
    with pytest.raises(ConfigError, match=r"shots=4, but shots_from=.*examples\.jsonl has 3 row\(s\)"):
        read(tmp_path, GOOD, **use | {"shots": 4})
    config = validate(TaskConfig, {"name": "t", "kind": "multiple_choice", "rows": str(tmp_path / "rows.jsonl"), **use})
    before = local_rows(EvalConfig(tasks=(config,)))
    examples.write_text(examples.read_text() + "\n")
    after = local_rows(EvalConfig(tasks=(config,)))
    assert before["t"] == after["t"] and before["t.shots"] != after["t.shots"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots_from": "x.jsonl"}, "need shots"),
        ({"shots": 1, "shots_from": "@rows/x.jsonl"}, "no artifact's"),
        ({"delimiter": " "}, "plain text: set chat to false"),
        ({"delimiter": " ", "chat": False, "map": {"query": "Q: "}}, "ends in white space"),
        ({"delimiter": " ", "chat": False, "template": "{{ query }}\n"}, "ends in white space"),
        ({"map": {"gold": True}}, r"map\.gold"),
        ({"map": {"qery": "x"}}, r"map\.qery: .*did you mean 'query'"),
        ({"map": {"query": "{{ x"}}, r"map\.query: not valid jinja2"),
        ({"kind": "generate", "check": "regex", "shots": 2}, "patterns for answers"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, GOOD, **settings)
