"""Columns of rows: each is read, left out by name, or refused with the mend; other layouts are converted by name."""

from typing import Any

import pytest

from lifecycle.text.row_columns import KINDS, Columns, require_named, used_columns
from lifecycle.text.row_files import RowError

USER = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        (
            "chat",
            {"prompt": "q", "completion": "a", "label": False},
            r"column label: nobody reads it in chat rows with",
        ),
        ("chat", {"messages": USER, "images": []}, r"column images: .* leave it out with rows\.ignore=\[images\]"),
        ("chat", {"text": "a", "tools": "[]"}, "column tools: nobody reads it in chat rows with text"),
        ("chat", {"messages": USER, "text": "a"}, "column text"),
        ("chat", {"text": "a", "chat_template_kwargs": {}}, "column chat_template_kwargs"),
        ("chat", {"question": "q", "answer": "a"}, r"columns question, answer; expected messages, or prompt and comp"),
        ("chat", {"instruction": "q", "output": "a"}, r"rows with instruction are read with rows\.convert=alpaca"),
        ("chat", {"conversations": []}, r"rows with conversations are read with rows\.convert=sharegpt"),
        (
            "pairs",
            {"instruction": "q", "input": "", "output": "o", "chosen": "a", "rejected": "b"},
            r"columns instruction, input, output: nobody reads them .* or read them too with rows\.convert=alpaca",
        ),
        ("labelled", {"prompt": "q", "completion": "a"}, "expected prompt and completion and label"),
        ("steps", {"prompt": "q", "completions": ["a"], "labels": [True], "tools": "[]"}, "column tools"),
    ],
)
def test_a_column_that_nobody_reads_is_refused(kind: str, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        Columns(kind).read(row)


def test_every_kind_has_its_columns_and_those_of_the_template() -> None:
    assert used_columns("chat", {"messages": USER, "tools": [], "chat_template_kwargs": {}}) == (
        "messages", "tools", "chat_template_kwargs",
    )  # fmt: skip
    assert used_columns("pairs", {"rejected": "b", "chosen": "a", "margin": 1}) == ("chosen", "rejected", "margin")
    assert used_columns("prompts", {"prompt": "q", "answer": "4", "tools": []}) == ("prompt", "answer", "tools")
    assert {form for kind in KINDS.values() for form in kind.forms} >= {("prompt", "completions", "labels"), ("text",)}


def test_columns_are_left_out_and_renamed() -> None:
    row = {"question": "q", "answer": "a", "id": 7}
    columns = Columns("chat", ignore=("id",), rename={"question": "prompt", "answer": "completion"})
    assert columns.read(row) == {"prompt": "q", "completion": "a"}
    with pytest.raises(RowError, match="rename: question and prompt would both be prompt; leave one out"):
        columns.read(row | {"prompt": "p"})
    assert Columns("pairs", rename={"good": "chosen", "chosen": "rejected"}).read({"good": "a", "chosen": "b"}) == {
        "chosen": "a", "rejected": "b",
    }  # fmt: skip
    with pytest.raises(
        RowError, match=r"expected messages, or prompt and completion, or text.*; ignore leaves out answer"
    ):
        Columns("chat", ignore=("answer",)).read({"prompt": "q", "answer": "a"})
    with pytest.raises(RowError, match=r"rows\.ignore=\[answer\]"):  # the name that it has in the file
        Columns("pairs", rename={"answer": "reply"}).read({"chosen": "a", "rejected": "b", "answer": "c"})
    with pytest.raises(RowError, match=r"rows\.ignore: no row has a column 'idd'; did you mean 'id'"):
        require_named(["idd"], row, "rows.ignore")


def test_alpaca_has_its_input_behind_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    prompt = [{"role": "user", "content": "Add.\n\n1 and 2"}]
    assert Columns("chat", convert="alpaca").read(row) == {"prompt": prompt, "completion": "3"}
    assert Columns("chat", convert="alpaca").read(row | {"input": " ", "system": "Be brief."})["prompt"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add."},
    ]  # fmt: skip
    pair = row | {"chosen": "3", "rejected": "4"}
    with pytest.raises(RowError, match=r"column output: .*rows\.ignore=\[output\]"):
        Columns("pairs", convert="alpaca").read(pair)
    read = Columns("pairs", ignore=("output",), convert="alpaca").read(pair)
    assert read == {"prompt": prompt, "chosen": "3", "rejected": "4"}


CALL = '{"name": "add", "arguments": {"a": 1}}'
TURNS = [
    {"from": "human", "value": "1 + 2?"}, {"from": "function_call", "value": CALL},
    {"from": "observation", "value": "3"}, {"from": "gpt", "value": "3."},
]  # fmt: skip


def test_sharegpt_has_its_speakers_and_calls() -> None:
    read = Columns("chat", convert="sharegpt").read({"conversations": TURNS, "system": "s", "tools": "[]"})
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert read == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "3."},
        ],
        "tools": "[]",
    }
    chosen, rejected = ({"from": "gpt", "value": text} for text in ("3", "4"))
    pair = Columns("pairs", convert="sharegpt").read(
        {"conversations": TURNS[:1], "chosen": chosen, "rejected": rejected}
    )
    assert pair["prompt"] == [{"role": "user", "content": "1 + 2?"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "3"}]


@pytest.mark.parametrize(
    ("convert", "row", "problem"),
    [
        ("alpaca", {"prompt": "q", "output": "a"}, "no instruction"),
        ("alpaca", {"instruction": "q", "input": None, "output": "a"}, "input must be text, got NoneType"),
        ("alpaca", {"instruction": "q", "prompt": "p", "output": "a"}, "there is a column prompt"),
        ("sharegpt", {"messages": []}, "expected conversations"),
        ("sharegpt", {"conversations": "hi"}, "must be a list"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, "turn 1: unknown speaker 'bot'"),
        (
            "sharegpt",
            {"conversations": [{"role": "user", "content": "a"}]},
            "expected from and value, got role, content",
        ),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "add(1)"}]}, "not valid JSON"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": '{"name": "f"}'}]}, "expected a call"),
    ],
)
def test_rows_of_another_layout_than_the_stated_one_are_refused(convert: str, row: dict, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        Columns("chat", convert=convert).read(row)
