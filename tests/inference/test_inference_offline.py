"""Answers to a file's rows: in order, alike after a stop anywhere, and with the faults of a row in that row."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import generate
from lifecycle.inference.generation import EngineError
from lifecycle.inference.model import Model
from lifecycle.inference.offline import GENERATED, Answered, Asked, answer_file
from lifecycle.inference.sampling import SamplingParams

SLOTS = 2
ASKED = Asked(SamplingParams(temperature=1.0, max_tokens=6, stop_ids=(), seed=5))
ROWS: list[dict[str, Any]] = [{"prompt": f"row {n}", "id": n} for n in range(12)]


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, SLOTS, dispatch_s=math.inf) as engine:
        yield engine


def written(folder: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def answered(engine: Engine, rows: Path, asked: Asked = ASKED, name: str = "out.jsonl") -> tuple[Answered, list[Any]]:
    out = rows.parent / name
    counts = answer_file(engine, rows, out, asked, Silent())
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_line_n_answers_row_n_with_its_columns_and_its_own_seed(model: Model, engine: Engine, tmp_path: Path) -> None:
    counts, lines = answered(engine, written(tmp_path, *ROWS, "", ROWS[0]))
    assert [{"prompt": line["prompt"], "id": line["id"]} for line in lines] == [*ROWS, ROWS[0]]
    assert (counts.answered, counts.kept, counts.failed) == (13, 0, 0)
    assert counts.tokens == 13 * 6 == sum(line[GENERATED]["tokens"] for line in lines)
    template, tokens = model.template, ASKED.params
    for number in (0, 7, 12):
        messages = [{"role": "user", "content": lines[number]["prompt"]}]
        ids = template.render(messages, add_generation_prompt=True).ids
        own = tokens.model_copy(update={"seed": 5 + number})
        assert generate(model, [ids], own, SLOTS)[0].text == lines[number][GENERATED]["text"]
    assert lines[0][GENERATED]["text"] != lines[12][GENERATED]["text"]  # the same row, with another seed


def test_lines_of_windows_are_read_and_a_missing_folder_is_made(engine: Engine, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    counts, lines = answered(engine, rows, name="some/where/out.jsonl")
    assert counts.answered == 2 and [line["prompt"] for line in lines] == ["a", "b"]


def test_a_stop_anywhere_and_the_same_command_again_give_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    rows = written(tmp_path, *ROWS)
    answered(engine, rows)
    whole = (tmp_path / "out.jsonl").read_bytes()
    for kept in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        (tmp_path / "stopped.jsonl").write_bytes(whole[:kept])
        counts, _ = answered(engine, rows, name="stopped.jsonl")
        assert (tmp_path / "stopped.jsonl").read_bytes() == whole
        assert counts.kept == whole[:kept].count(b"\n") and counts.kept + counts.answered == len(ROWS)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ('{"prompt"', "not valid JSON"),
        ("[1]", "expected an object"),
        ({"id": 3}, "either 'prompt' or 'messages'; this one has id"),
        ({"prompt": "a", "messages": []}, "either 'prompt' or 'messages'"),
        ({"prompt": 7}, "expected a text or a list of messages, got 7"),
        ({"prompt": ["a"]}, "expected a text or a list of messages"),
        ({"prompt": [{"role": "user"}]}, "content"),
        ({"prompt": "x" * 4000}, "the context holds"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "'tools' is not used"),
    ],
)
def test_a_row_with_a_fault_has_its_error_and_the_others_their_answers(
    engine: Engine, tmp_path: Path, row: Any, error: str
) -> None:
    counts, lines = answered(engine, written(tmp_path, ROWS[0], row, ROWS[2]))
    assert error in lines[1][GENERATED]["error"] and "text" not in lines[1][GENERATED]
    assert [line[GENERATED]["tokens"] for line in (lines[0], lines[2])] == [6, 6]
    assert (counts.answered, counts.failed) == (2, 1)
    assert f"{tmp_path}/rows.jsonl:2: " in counts.examples[0] and error in counts.examples[0]


def test_answers_to_other_rows_settings_or_weights_are_not_continued(engine: Engine, tmp_path: Path) -> None:
    rows = written(tmp_path, *ROWS[:3])
    answered(engine, rows)
    for other in (Asked(ASKED.params, "Be brief."), Asked(ASKED.params, None, True), Asked(SamplingParams())):
        with pytest.raises(ConfigError, match=r"out.jsonl:1 answers another row, or was made with other settings"):
            answered(engine, rows, other)
    written(tmp_path, ROWS[0], ROWS[2])
    with pytest.raises(ConfigError, match=r"out.jsonl:2 answers another row"):
        answered(engine, rows)
    written(tmp_path, *ROWS[:2])
    with pytest.raises(ConfigError, match=r"more lines than .*rows.jsonl has rows"):
        answered(engine, rows)
    with pytest.raises(ConfigError, match=r"rows\.jsonl holds the rows; choose another"):
        answered(engine, rows, name=rows.name)
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl: no such file"):
        answered(engine, tmp_path / "nowhere.jsonl")


def test_texts_are_continued_and_a_system_message_comes_first(model: Model, engine: Engine, tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "Once"}, {"messages": [{"role": "user", "content": "Once"}]})
    greedy = SamplingParams(temperature=0.0, max_tokens=6, stop_ids=())
    _, plain = answered(engine, rows, Asked(greedy, is_plain=True), "plain.jsonl")
    _, system = answered(engine, rows, Asked(greedy, "Be brief."), "system.jsonl")
    ids = model.tokenizer.begin(model.tokenizer.encode("Once"))
    assert plain[0][GENERATED]["text"] == generate(model, [ids], greedy, SLOTS)[0].text
    assert system[0][GENERATED]["text"] == system[1][GENERATED]["text"] != plain[1][GENERATED]["text"]


def test_an_engine_that_fails_ends_the_run_and_leaves_no_row_as_failed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    rows = written(tmp_path, *ROWS)
    with Engine(model, SLOTS, dispatch_s=math.inf) as engine:
        lost = OSError("lost device")
        monkeypatch.setattr("lifecycle.inference.programs.decode", lambda *_: (_ for _ in ()).throw(lost))
        with pytest.raises(EngineError, match="the engine has stopped"):
            answered(engine, rows)
    assert (tmp_path / "out.jsonl").read_text() == ""
