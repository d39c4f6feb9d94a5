"""Texts made of documents: passages, what an answer must have, lineage, and that a further run cleans the rows."""

import json
import re
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.annotation.passages import passages
from lifecycle.annotation.prompts import QUESTIONS, REPHRASE
from lifecycle.annotation.respondents import Sampled, ServerRespondent
from lifecycle.annotation.synthesis import ROWS, STAGE, Kind, Synthesis, pairs_in, synthesise, text_of
from lifecycle.cli.data import data
from lifecycle.core.artifact import Artifact, content_hash, open_artifact, require_intact
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import SPLITS, read_documents
from lifecycle.evals.chat_client import Answer
from tests.annotation.conftest import DEBUG, Run, client, essay
from tests.annotation.test_annotation_grading import document_in
from tests.rl.judging_server import Say, judging

TEXTS = st.text(st.sampled_from("ab. \n\t!?\u3002\u00e9\u2003"), max_size=120)


@given(TEXTS, st.integers(1, 40))
def test_passages_have_all_of_a_text_in_order_and_none_is_too_long(text: str, most: int) -> None:
    found = passages(text, most)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(passage) <= most and passage == passage.strip() for passage in found)


@given(st.lists(st.text("ab \n", min_size=1, max_size=9).map(lambda s: re.sub(r"\s+", " ", s).strip()), max_size=9))
def test_paragraphs_that_fit_are_never_cut(paragraphs: list[str]) -> None:
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    found = passages("\n\n".join(paragraphs), 10)
    assert [part for passage in found for part in passage.split("\n\n")] == paragraphs
    assert all(len(f"{a}\n\n{b.partition(chr(10))[0]}") > 10 for a, b in pairwise(found))


def test_a_long_paragraph_is_cut_behind_a_sentence_or_else_a_word() -> None:
    assert passages("One is here. Two is there. Three", 27) == ["One is here. Two is there.", "Three"]
    assert passages("word " * 5, 12) == ["word word", "word word", "word"]
    assert passages("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


@pytest.mark.parametrize(
    ("answer", "kind", "found"),
    [
        (Answer("A new text. ", "stop"), "rephrase", ("A new text.", "")),
        (Answer("A new te", "length"), "rephrase", ("", "cut off")),
        (Answer(" \n", "stop"), "rephrase", ("", "empty")),
        (Answer("", "refusal"), "rephrase", ("", "refused by the model")),
        (Answer("", "content_filter"), "questions", ("", "refused by the model")),
        (Answer("I'm sorry, but I can't do that.", "stop"), "rephrase", ("", "refused by the model")),
        (Answer("As an AI, I have no opinion", "stop"), "rephrase", ("", "refused by the model")),
        (Answer("I cannot be found in this town.", "stop"), "rephrase", ("I cannot be found in this town.", "")),
        (Answer("half \ud800", "stop"), "rephrase", ("half ?", "")),
        (Answer("Here are none.", "stop"), "questions", ("", "no question with an answer")),
        (
            Answer("Here:\n**Question 1:** Why?\n**Answer:** So.\nAnd so.\n\n2. Q: Who?\nA: He.\nQuestion: What?", ""),
            "questions", ("Question: Why?\nAnswer: So.\nAnd so.\n\nQuestion: Who?\nAnswer: He.", ""),
        ),
    ],
)  # fmt: skip
def test_what_an_answer_gives(answer: Answer, kind: Kind, found: tuple[str, str]) -> None:
    text, fault = text_of(answer, kind)
    assert fault == found[1] and (text == found[0] or fault)


@given(st.lists(st.tuples(*[st.text("abc de", min_size=1, max_size=9).map(str.strip).filter(bool)] * 2), max_size=5))
def test_pairs_are_found_again(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)
    assert pairs_in(text) == pairs


def made(say: Say, documents: Path, root: Path, kind: Kind = "rephrase", chars: int = 4000, most: int = 99) -> Artifact:
    prompt = REPHRASE if kind == "rephrase" else QUESTIONS
    with judging(say) as (address, _):
        own = ServerRespondent(client(address), Sampled(0.7, 512))
        wanted = Synthesis(kind, prompt, most, 0, chars)
        return synthesise(documents, root, own, wanted, Silent(), {"temperature": 0.7}, {"asked": address})


def rows_in(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path / ROWS).read_text().splitlines()]


def test_a_row_says_where_it_comes_from_and_failures_are_counted(documents: Path, tmp_path: Path) -> None:
    def say(body: dict[str, Any]) -> tuple[int, Any]:
        own = document_in(body)
        reason = "length" if own.startswith("The b") else "stop"
        said = "I'm sorry, no." if own.startswith("The w") else f"Said anew: {own[:40]}"
        message = {"content": None} if own.startswith("The l") else {"content": said}
        return 200, {"choices": [{"message": message, "finish_reason": reason}]}

    found = made(say, documents, tmp_path, chars=400)
    kept = {row["id"]: row for row in read_documents(documents, "kept")}
    cut = {name: passages(row["text"], 400) for name, row in kept.items()}
    rows = rows_in(found)
    assert [(row["from_id"], row["passage"]) for row in rows] == [
        (name, number) for name, own in cut.items() for number, passage in enumerate(own)
        if passage[:5] not in ("The b", "The w", "The l")
    ]  # fmt: skip
    for row in rows:
        origin = kept[row["from_id"]]
        assert row["text"] == f"Said anew: {cut[row['from_id']][row['passage']][:40]}".strip()
        assert (row["license"], row.get("url")) == (origin["license"], origin["url"])
        assert (row["from_source"], row["from_path"]) == (origin["source"], origin["path"])
        assert (row["kind"], row["prompt"], row["model"]) == ("rephrase", REPHRASE.version, "m")
    assert {row["license"] for row in rows} == {"CC0-1.0", "CC-BY-4.0"} and found.stats["documents"] == len(kept)
    assert found.stats["faults"].keys() == {"cut off", "refused by the model", "empty"}
    assert found.stats["passages"] == sum(map(len, cut.values())) == len(rows) + sum(found.stats["faults"].values())
    require_intact(found)
    assert found.manifest.input_hashes == {"documents": content_hash(documents)} and found.manifest.stage == STAGE
    assert {*found.manifest.files} == {ROWS}


def test_it_is_made_once_and_goes_on_where_it_stopped(documents: Path, tmp_path: Path) -> None:
    def text(body: dict[str, Any]) -> str:
        return f"Anew: {document_in(body)}"

    seen: list[str] = []
    alone = threading.Lock()

    def say(body: dict[str, Any]) -> tuple[int, Any]:
        with alone:
            seen.append(document_in(body))
            number = len(seen)
        return (200, text(body)) if number <= 8 else (503, {"error": "busy"})

    with pytest.raises(ConfigError, match="the same command goes on"):
        made(say, documents, tmp_path / "a")
    (draft,) = (tmp_path / "a").iterdir()
    assert draft.name.endswith(".partial")
    before, seen[8:] = len((draft / "journal.jsonl").read_text().splitlines()) - 1, []
    again: list[str] = []
    found = made(lambda body: again.append(document_in(body)) or (200, text(body)), documents, tmp_path / "a")
    assert before == 8 and not {*again} & {*seen} and len(again) == found.stats["rows"] - 8
    assert made(lambda _: (500, {}), documents, tmp_path / "a") == open_artifact(found.path)
    whole = made(lambda body: (200, text(body)), documents, tmp_path / "b")
    assert whole.content_hash == found.content_hash
    other = made(lambda body: (200, "Question: a?\nAnswer: b."), documents, tmp_path / "a", kind="questions", most=3)
    assert other.path != found.path and len(rows_in(other)) == 3
    with pytest.raises(ConfigError, match="none of 3 answers can be used"):
        made(lambda _: (200, "no"), documents, tmp_path / "c", kind="questions", most=3)


PLANTED = "Which of the nine lanterns above the copper gate was lit by the miller on the third night of the long frost"


def test_another_run_removes_copies_and_the_tests_that_a_model_knows(
    run: Run, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that copies its document, one that changes a word, one that says a test, and one that says new things."""
    (tmp_path / "items.jsonl").write_text(json.dumps({"prompt": PLANTED, "answer": "the seventh"}) + "\n")
    task = [{"name": "items", "kind": "generate", "rows": str(tmp_path / "items.jsonl"), "chat": False}]
    number = iter(range(10_000))

    def say(body: dict[str, Any]) -> tuple[int, Any]:
        own, place = document_in(body), next(number)
        new = essay(1000 + place)
        return 200, (own, own.replace("The", "This", 1), f"{new}\n{PLANTED}? The seventh.", new)[place % 4]

    with judging(say) as (address, _):
        words = ["--kind", "rephrase", "--model", f"{address}#m", "--out", str(tmp_path / "made"), "--concurrency", "1"]
        data(["synthesise", str(DEBUG), *run.words, *words, "--most", "16"], result_action="return_value")
    shown = capsys.readouterr().out
    rows = Path(shown.splitlines()[-1])
    assert "16 documents, 16 passages, 16 rows; failed: none" in shown and rows.is_file()
    before = json.loads(run.words[0].partition("=")[2])
    sources = json.dumps([*before, {"name": "synthetic", "path": str(rows)}])
    further = Run.__new__(Run)
    further.words = (f"data.sources={sources}", f"root={tmp_path / 'runs'}", "data.quality.repetition=null")
    folder = further.select(f"evaluate.tasks={json.dumps(task)}", "data.heldout_fraction=0.01")["documents"]
    found = {
        row["path"].rpartition(":")[2]: (split, row)
        for split in SPLITS for row in read_documents(folder, split) if row["source"] == "synthetic"
    }  # fmt: skip
    assert len(found) == 16
    reasons = {number: row["step"] or split for number, (split, row) in found.items()}
    assert [reasons[str(number)] for number in range(1, 17, 4)] == ["exact_duplicates"] * 4
    assert [reasons[str(number)] for number in range(2, 17, 4)] == ["near_duplicates"] * 4
    planted = [reasons[str(number)] for number in range(3, 17, 4)]
    assert {*planted} <= {"decontamination", "heldout"} and planted.count("decontamination") >= 2
    assert {reasons[str(number)] for number in range(4, 17, 4)} <= {"kept", "heldout"}
    kept = {row["id"]: row for row in read_documents(documents, "kept")}
    for _, row in found.values():
        meta = json.loads(row["meta"])
        origin = kept[meta["from_id"]]
        assert (row["license"], row["url"]) == (origin["license"], origin["url"]) and meta["prompt"] == REPHRASE.version
