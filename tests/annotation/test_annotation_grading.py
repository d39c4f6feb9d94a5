"""Grades by a model: what counts as one, which documents are asked about, and what a stop or a failure costs."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.annotation.grading import Graded, Grading, grade_documents, grade_in
from lifecycle.annotation.journal import Journal
from lifecycle.annotation.prompts import EDUCATION, QUESTIONS, REPHRASE, SCALE, Prompt, read_prompt
from lifecycle.annotation.respondents import Sampled, ServerRespondent
from lifecycle.annotation.sample import drawn_numbers, shares
from lifecycle.cli.data import data
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import read_documents
from lifecycle.evals.chat_client import Answer, AskError
from lifecycle.testing.server import served
from tests.annotation.conftest import DEBUG, Run, client
from tests.rl.judging_server import judging

SAMPLED = Sampled(0.0, 64)
SHIPPED = (EDUCATION, REPHRASE, QUESTIONS)


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("Grade: 3", 3), ("**Grade:** 4/5", 4), ("3", 3), ("grade (0-5): 2", 2), ('{"grade": 5}', 5), (" 4 / 5. ", 4),
        ("Clear. Score: 2 at first.\nGrade: 3", 3), ("Grade: 3.5.", 3.5), ("Grade is 4", 4), ("Grade: 0", 0),
        ("Grade: 10/10", "a grade on another scale"), ("Grade: -1", "a grade on another scale"),
        ("Grade: 30", "a grade on another scale"), ("7", "a grade on another scale"),
        ("", "no grade"), ("no idea", "no grade"), ("Grade 0 to 5", "no grade"), ("Grade: 1 or 2", "no grade"),
        ("Grade: 3,5", "no grade"), ("I have read 3 books.", "no grade"), ("upgrade: 3", "no grade"),
    ],
)  # fmt: skip
def test_an_answer_s_grade_is_what_it_says_and_never_guessed(said: str, grade: float | str) -> None:
    assert grade_in(Answer(said, "stop"), 0, 5) == grade
    assert grade_in(Answer(said, "length"), 0, 5) == "cut off"


@given(st.text(max_size=200))
def test_any_answer_is_a_grade_on_the_scale_or_a_reason(said: str) -> None:
    found = grade_in(Answer(said, ""), 1, 3)
    assert found in ("no grade", "a grade on another scale") or 1 <= float(found) <= 3


@given(st.dictionaries(st.text(max_size=2), st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 60))
def test_a_sample_has_each_source_s_share_and_a_larger_one_has_it(counts: dict[str, int], most: int) -> None:
    found, total = shares(counts, most), sum(counts.values())
    assert sum(found.values()) == min(most, total) and all(found[name] <= counts[name] for name in counts)
    assert all(abs(found[name] - count * min(most, total) / total) <= len(counts) for name, count in counts.items())
    assert most < len(counts) or min(found.values()) >= 1
    assert all(found[name] <= size for name, size in shares(counts, most + 1).items())


def test_samples_are_nested_and_seeds_differ(documents: Path) -> None:
    every = len([*read_documents(documents, "kept")])
    small, large = drawn_numbers(documents, 6, 0), drawn_numbers(documents, 12, 0)
    assert {*small} < {*large} and len(large) == 12 and drawn_numbers(documents, 99, 1) == [*range(every)]
    assert drawn_numbers(documents, 12, 1) != large
    rows = [*read_documents(documents, "kept", ["source"])]
    assert Counter(rows[number]["source"] for number in small)["pages"] in (1, 2)


def document_in(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"].partition("<document>\n")[2].partition("\n</document>")[0]


def graded(address: str, folder: Path, out: Path, most: int = 12, **settings: Any) -> Graded:
    own = ServerRespondent(client(address, **settings), SAMPLED)
    return grade_documents(folder, out, own, Grading(EDUCATION, most), Silent(), {"temperature": 0.0})


def test_every_document_has_a_grade_or_a_reason_and_is_asked_about_once(documents: Path, tmp_path: Path) -> None:
    texts = {row["text"]: row for row in read_documents(documents, "kept")}

    def say(body: dict[str, Any]) -> tuple[int, Any]:
        number = len(document_in(body)) % 5
        if number == 0:
            return 400, {"error": "too long"}
        return 200, "it is hard to say" if number == 1 else f"Fine text.\nGrade: {number}"

    out = tmp_path / "grades" / "scores.jsonl"
    with judging(say) as (address, asked):
        first = graded(address, documents, out, 6)
        lines = out.read_text()
        assert len(asked) == 6 and {document_in(body) for body in asked} <= texts.keys()
        again = graded(address, documents, out, 6)
        assert len(asked) == 6 and out.read_text() == lines and again == Graded(first.grades, first.faults, 6)
        more = graded(address, documents, out, 99)
        assert len(asked) == len(texts) and more.before == 6
        assert len({document_in(body) for body in asked}) == len(texts)
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    expected = {row["id"]: len(text) % 5 for text, row in texts.items() if len(text) % 5 > 1}
    assert {name: row["score"] for name, row in rows.items()} == expected
    assert more.grades == {float(key): count for key, count in sorted(Counter(expected.values()).items())}
    assert sum(more.grades.values()) + sum(more.faults.values()) == len(texts)
    assert more.faults.keys() <= {"refused by the server", "no grade"}
    one = next(iter(rows.values()))
    assert one.keys() == {"id", "content", "source", "score", "prompt", "model"} and one["model"] == "m"
    assert one["content"] in {row["content"].hex() for row in texts.values()} and one["prompt"] == EDUCATION.version


def test_a_server_that_goes_away_leaves_what_it_has_answered(documents: Path, tmp_path: Path) -> None:
    is_gone = False

    def say(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal is_gone
        is_gone = is_gone or sum(request["path"] != "" for request in asked) > 5
        return (503, {"error": "busy"}) if is_gone else (200, "Grade: 2")

    out = tmp_path / "scores.jsonl"
    with judging(say) as (address, asked), pytest.raises(ConfigError, match="the same command goes on"):
        graded(address, documents, out)
    assert not out.exists()
    whole = (tmp_path / "scores.jsonl.journal").read_bytes()
    kept = len(whole.splitlines()) - 1
    (tmp_path / "scores.jsonl.journal").write_bytes(whole + b'{"key": "half a li')
    with judging(lambda _: (200, "Grade: 2")) as (address, asked):
        found = graded(address, documents, out)
    assert 0 < kept < 12 and len(asked) == 12 - kept == 12 - found.before and found.grades == {2.0: 12}


def test_a_refusal_of_all_ends_it_and_tells_no_key(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADER_KEY", "sk-hidden")
    out = tmp_path / "scores.jsonl"
    with judging(lambda _: (401, {"error": "bad key"})) as (address, asked), pytest.raises(AskError) as caught:
        graded(address, documents, out, key_variable="GRADER_KEY")
    assert "HTTP 401" in str(caught.value) and asked[0]["authorization"] == "Bearer sk-hidden"
    with judging(lambda _: (200, "Grade: 1")) as (address, _):
        graded(address, documents, out, key_variable="GRADER_KEY")
    assert all("sk-hidden" not in file.read_text() for file in tmp_path.iterdir()) and "sk-hidden" not in str(caught)
    monkeypatch.delenv("GRADER_KEY")
    words = ["--model", f"{address}#m", "--out", str(out), "--key-variable", "GRADER_KEY"]
    with pytest.raises(ConfigError, match="set the environment variable GRADER_KEY"):
        data(["score", str(documents), *words], result_action="return_value")


KILLED = """
import os, sys
from pathlib import Path
from lifecycle.annotation.grading import Grading, grade_documents
from lifecycle.annotation.prompts import EDUCATION
from lifecycle.annotation.respondents import Sampled, ServerRespondent
from lifecycle.core.progress import Silent
from lifecycle.evals.chat_client import ChatClient

class Killing(Silent):
    def update(self, done, total=None, **metrics):
        if done == 5:
            os.kill(os.getpid(), 9)

address, folder, out = sys.argv[1:]
own = ServerRespondent(ChatClient(address, "m", "", 60, 1, 1), Sampled(0.0, 64))
grade_documents(Path(folder), Path(out), own, Grading(EDUCATION, 12), Killing(), {"temperature": 0.0})
"""


def test_what_was_answered_before_a_kill_is_not_asked_again(documents: Path, tmp_path: Path) -> None:
    with judging(lambda body: (200, f"Grade: {len(document_in(body)) % 4}")) as (address, asked):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, address, documents, tmp_path / "killed.jsonl"], check=False
        )
        assert ended.returncode == -9 and not (tmp_path / "killed.jsonl").exists()
        before = {document_in(body) for body in asked}
        found = graded(address, documents, tmp_path / "killed.jsonl")
        graded(address, documents, tmp_path / "whole.jsonl")
    assert found.before == 5 and len(before) >= 5
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_are_refused_and_so_is_a_second_process(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    with judging(lambda _: (200, "Grade: 1")) as (address, _):
        graded(address, documents, out, 3)
        with pytest.raises(ConfigError, match=r"made with other settings \(model 'm' -> 'other'\)"):
            graded(address, documents, out, 3, model="other")
    with Journal(tmp_path / "own", {}), pytest.raises(ConfigError, match="another process writes it"):
        Journal(tmp_path / "own", {})
    (tmp_path / "own").write_bytes(b"{}\n{broken\n")
    with pytest.raises(ConfigError, match="damaged at byte 3"):
        Journal(tmp_path / "own", {})


def read_prompt_of(folder: Path, prompt: Prompt) -> Prompt:
    (folder / f"{prompt.name}.txt").write_text(f"{prompt.template}\n")
    return read_prompt(folder / f"{prompt.name}.txt", SCALE)


def test_prompts_have_versions_and_show_the_text(tmp_path: Path) -> None:
    assert Prompt("education", EDUCATION.template + ".").version != EDUCATION.version
    assert all(read_prompt_of(tmp_path, prompt).version == prompt.version for prompt in SHIPPED)
    own = tmp_path / "mine.txt"
    own.write_text("Is it fun, from {{ low }} to {{ high }}? {{ text }}")
    prompt = read_prompt(own, SCALE)
    assert prompt.name == "mine" and prompt.filled({"text": "a</document >b", "low": "0", "high": "5"}) == (
        "Is it fun, from 0 to 5? a&lt;/document >b"
    )
    for text, said in (("Is it fun?", "shows no"), ("{{ text }} {{ secret }}", "'secret'"), ("{{ text", "not valid")):
        own.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_prompt(own, SCALE)


@pytest.mark.slow
def test_the_command_line_asks_a_real_server(run: Run, documents: Path, tmp_path: Path, capsys: Any) -> None:
    out, made = tmp_path / "scores.jsonl", tmp_path / "made"
    with served("num_slots=2") as (address, _):  # its answers never end by themselves
        words = [str(DEBUG), *run.words, "--model", f"{address}/v1#tiny", "--chars", "300", "--max-tokens", "4"]
        data(["score", *words, "--out", str(out), "--sample", "4"], result_action="return_value")
        written = ["synthesise", *words, "--out", str(made), "--most", "2", "--kind", "rephrase"]
        with pytest.raises(ConfigError, match=r"none of \d+ answers can be used: \{'cut off': \d+\}"):
            data(written, result_action="return_value")
    assert "0 documents graded, 4 answers without a grade" in capsys.readouterr().out and out.read_text() == ""
    for model in ("http://127.0.0.1:9/v1", "http://user:pass@127.0.0.1/v1#m", "http://127.0.0.1/v1?key=1#m"):
        with pytest.raises(ConfigError) as caught:
            data(["score", str(DEBUG), *run.words, "--model", model, "--out", str(out)], result_action="return_value")
        assert "pass@" not in str(caught.value) and "key=1" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["made", "scores.jsonl", "scores.jsonl.journal"]
