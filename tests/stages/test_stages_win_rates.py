"""Win rates of training stages: held-out prompts of any kind of row, a judge with its faults, and what is kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Silent
from lifecycle.evals import chat_client
from lifecycle.report.blocks import Report
from lifecycle.report.markdown import render_markdown
from lifecycle.report.win_rates_section import win_rates_section
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.rows import row_encoder, rows_file
from lifecycle.stages.stage import Inputs
from lifecycle.stages.win_rates import Question, held_out_questions, run
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import RowEncoder
from lifecycle.text.tokenizer import load_tokenizer
from tests.rl.judging_server import Say, judging

MODEL = {"vocab_size": 264, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 16, "max_seq_len": 128}  # fmt: skip
SIZES = {"steps": 2, "seq_len": 128, "global_batch_size": 4}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client.time, "sleep", lambda _: None)


def config_of(folder: Path, **win_rates: Any) -> RunConfig:
    rows = [{"prompt": f"question {n}? ", "completion": "an answer"} for n in range(40)]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "judge", "key_variable": "", "tries": 1, "concurrency": 2}
    settings = {"pairs": [["b", "a"]], "rows": "chat", "max_tokens": 16, "judge": judge}
    given = win_rates.pop("judge", {})
    settings |= win_rates | {"judge": judge | given}
    train = {"a": {"objective": "sft", "from": "fresh", **SIZES}, "b": {"objective": "sft", "from": "a", **SIZES}}
    tree = {
        "name": "run", "root": str(folder), "model": MODEL, "tokenizer": {"kind": "bytes"}, "train": train,
        "rows": {"chat": [str(folder / "own.jsonl")], "heldout_fraction": 0.5}, "evaluate": {"win_rates": settings},
    }  # fmt: skip
    return validate(RunConfig, tree)


class Judged:
    """A run whose stages have answered: prompt n with `answer n`, the second with something more."""

    def __init__(self, folder: Path, more: Callable[[int], str] = lambda n: "!") -> None:
        self.folder, config = folder, config_of(folder)
        self.inputs = bring_up_to_date(config, ("tokenizer", "rows"), Silent())
        self.count = len(questions_of(config, self.inputs))
        for stage, end in (("a", lambda _: ""), ("b", more)):
            self.answer(stage, [f"answer {n}{end(n)}" for n in range(self.count)])

    def answer(self, stage: str, answers: list[str]) -> None:
        (self.folder / f"answers-{stage}.json").write_text(json.dumps(answers))

    def by(self, say: Say, names: tuple[str, str] = ("b", "a"), **judge: Any) -> tuple[dict[str, Any], int]:
        """The pair's win rate, and how often the judge was asked."""
        with judging(say) as (address, asked):
            config = config_of(self.folder, pairs=[names], judge={"base_url": address, **judge})
            outcome = run(config, self.inputs, self.folder, Silent())
        (pair,) = outcome.stats["pairs"]
        return pair, len(asked)


def questions_of(config: RunConfig, inputs: Inputs) -> list[Question]:
    assert config.win_rates is not None
    encoder = row_encoder(config.rows, inputs, load_tokenizer(inputs["tokenizer"].path))
    path = rows_file(inputs["rows"].path, config.win_rates.rows, "heldout")
    return held_out_questions(path, config.win_rates, encoder, 100)


def answers_in(body: dict[str, Any]) -> tuple[str, ...]:
    text = body["messages"][0]["content"]
    return tuple(text.partition(f"<answer_{place}>\n")[2].partition("\n</answer")[0] for place in "AB")


def verdict(answer: str) -> tuple[int, Any]:
    return 200, json.dumps({"answer": answer})


def test_a_judge_that_favours_a_place_decides_nothing(tmp_path: Path) -> None:
    found, asked = Judged(tmp_path, lambda n: "!" * (1 + n % 3)).by(lambda _: verdict("A"))
    assert found["pair"] == ["b", "a"] and asked == 2 * found["n"] > 10
    assert (found["rate"]["mean"], found["wins"], found["ties"]) == (0.5, 0, found["n"])
    assert found["controlled"]["mean"] == pytest.approx(0.5)


def test_a_judge_of_length_alone_is_controlled_for(tmp_path: Path) -> None:
    """The second stage writes more to three of five prompts, and less to one."""

    def say(body: dict[str, Any]) -> tuple[int, Any]:
        a, b = map(len, answers_in(body))
        return verdict("tie" if a == b else "A" if a > b else "B")

    made = Judged(tmp_path)
    made.answer("a", ["x" * 200] * made.count)
    made.answer("b", ["y" * (140 + n % 5 * 60) for n in range(made.count)])
    found, _ = made.by(say)
    assert found["rate"]["mean"] == pytest.approx(0.7, abs=0.03)
    assert found["controlled"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert found["letters"][0] > found["letters"][1] == 200


def test_the_better_answers_win_in_either_place(tmp_path: Path) -> None:
    found, _ = Judged(tmp_path).by(lambda body: verdict("A" if answers_in(body)[0].endswith("!") else "B"))
    assert (found["rate"]["mean"], found["losses"], found["faults"]) == (1.0, 0, 0)
    assert found["controlled"] is None  # all answers are longer by one letter
    assert found["shown"][0]["first"].endswith("!") and found["shown"][0]["prompt"].startswith("question ")
    page = render_markdown(Report("run", "", (win_rates_section({"judge": "m", "pairs": [found]}),)))
    assert f"| b | a | {found['n']} | {found['n']} | 0 | 0 | 1.000 " in page and "all differ alike" in page


def test_the_rows_own_answers_are_compared_with(tmp_path: Path) -> None:
    found, _ = Judged(tmp_path).by(
        lambda body: verdict("A" if answers_in(body)[0] == "an answer" else "B"), ("b", "rows")
    )
    assert (found["pair"], found["losses"]) == (["b", "rows"], found["n"]) and found["n"] > 10
    assert found["shown"][0]["second"] == "an answer"
    rows = tmp_path / "chat-heldout.jsonl"
    shapes: list[dict[str, Any]] = [
        {"prompt": "none ", "completion": ""}, {"prompt": "one ", "completion": "1"},
        {"prompt": "bad ", "completion": "2", "label": False}, {"prompt": "good ", "completion": "3", "label": True},
        {"prompt": "pair ", "chosen": "4", "rejected": "5"},
    ]  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in shapes))
    settings, encoder = config_of(tmp_path, pairs=[("b", "rows")]).win_rates, RowEncoder(ChatTemplate(ByteTokenizer()))
    assert settings is not None
    for kind, expected in (("chat", {"1", "3"}), ("labelled", {"1", "3"})):
        of_kind = settings.model_copy(update={"rows": kind})
        assert {question.answer for question in held_out_questions(rows, of_kind, encoder, 100)} == expected
    rows.write_text("".join(json.dumps(shapes[4] | {"prompt": text}) + "\n" for text in ("a ", "b ")))
    rows.write_text("".join(json.dumps({"prompt": text, "completion": 5}) + "\n" for text in ("a ", "b ")))
    of_prompts = settings.model_copy(update={"rows": "prompts", "pairs": (("b", "a"),)})
    assert len(held_out_questions(rows, of_prompts, encoder, 100)) == 2  # a column of the user's own
    rows.write_text("".join(json.dumps(shapes[4] | {"prompt": text}) + "\n" for text in ("a ", "b ")))
    of_pairs = settings.model_copy(update={"rows": "pairs"})
    assert [question.answer for question in held_out_questions(rows, of_pairs, encoder, 100)] == ["4", "4"]


def test_equal_answers_are_a_tie_that_costs_nothing(tmp_path: Path) -> None:
    found, asked = Judged(tmp_path, lambda n: "!" if n % 2 else "").by(lambda _: verdict("tie"))
    assert found["ties"] == found["n"] and asked == 2 * (found["n"] // 2)


def test_what_the_judge_does_not_say_is_left_out_or_ends_the_run(tmp_path: Path) -> None:
    def say(body: dict[str, Any]) -> tuple[int, Any]:
        return (500, {}) if "question 1" in body["messages"][0]["content"] else verdict("A")

    made = Judged(tmp_path)
    with pytest.raises(
        ConfigError, match=r"b against a: \d+ of \d+ comparisons have no value, more than max_failed 0.05"
    ):
        made.by(say, max_failed=0.05)
    with pytest.raises(ConfigError, match="refuses all requests: HTTP 401"):
        made.by(lambda _: (401, {}))
    found, asked = made.by(say, max_failed=0.9)  # nothing is kept of a judge that failed
    assert 0 < found["faults"] == made.count - found["n"] and asked > 0
    assert made.by(say, max_failed=0.9) == (found, 0)  # what it said is kept


def test_prompts_are_the_same_ones_in_every_run_and_fit(tmp_path: Path) -> None:
    made = Judged(tmp_path)
    config = config_of(tmp_path, limit=5)
    few = questions_of(config, made.inputs)
    assert len(few) == 5 and few == questions_of(config_of(tmp_path), made.inputs)[:5]
    rows = made.inputs["rows"].path / "chat-heldout.jsonl"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    shapes = [
        {"messages": turns}, {"prompt": turns[:1], "completion": "hi"}, {"text": "nothing is asked"},
        {"messages": turns[1:]}, {"prompt": "q" * 500, "completion": "a"}, {"prompt": "two ", "completion": "a"},
    ]  # fmt: skip
    rows.write_text("".join(json.dumps(row) + "\n" for row in shapes))
    assert {str(one.asked.prompt) for one in questions_of(config, made.inputs)} == {str(turns[:1]), "two "}
    compared = config_of(tmp_path, limit=5, pairs=[("b", "rows")])
    assert {one.answer for one in questions_of(compared, made.inputs)} == {"hi", "a"}
    rows.write_text(json.dumps(shapes[2]) + "\n")
    with pytest.raises(ConfigError, match="0 of the held-out chat rows have a prompt of at most 100 tokens"):
        questions_of(config, made.inputs)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"pairs": [["b", "c"]]}, "no training stage 'c'"),
        ({"pairs": [["b", "b"]]}, "b is compared with itself"),
        ({"pairs": [["b", "a"], ["b", "a"]]}, "b and a are compared twice"),
        ({"rows": "prompts", "pairs": [["b", "rows"]]}, "rows of prompts have no answers"),
        ({"rows": "pairs"}, "no training stage reads such rows"),
        ({"template": "{{ prompt }} {{ first }}"}, "shows no {{ second }}"),
        ({"template": "{{ first }} {{ second }} {{ answer }}"}, "answer: there are prompt, first and second"),
    ],
)
def test_what_cannot_be_compared_is_refused(own: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        config_of(tmp_path, **own)


def test_where_a_judge_is_asked_is_no_part_of_the_result(tmp_path: Path) -> None:
    def key(**judge: Any) -> Any:
        config = config_of(tmp_path, judge=judge)
        return build_graph(config)["win-rates"].settings(config)

    assert key(timeout_s=3, base_url="https://other/v1", key_variable="K") == key() != key(model="another")
    assert "win-rates" in build_graph(config_of(tmp_path))["report"].inputs


@pytest.mark.slow
def test_stages_of_a_run_answer_and_are_compared(tmp_path: Path) -> None:
    with judging(lambda _: verdict("tie")) as (address, asked):
        config = config_of(tmp_path, judge={"base_url": address}, limit=4, max_tokens=4)
        made = bring_up_to_date(config, ("win-rates",), Silent())["win-rates"]
    (pair,) = made.stats["pairs"]
    assert pair["n"] == 4 and len(asked) <= 8 and pair["rate"]["mean"] == 0.5
    assert sorted(path.name for path in made.path.iterdir() if path.name != "manifest.json") == [
        "answers-a.json", "answers-b.json", "b-against-a.jsonl",
    ]  # fmt: skip
