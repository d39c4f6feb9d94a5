"""Rows in TRL's columns: what is learned, what is dropped and why, and which line is broken."""

import json
from pathlib import Path

import pytest

from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedRow, RowEncoder
from lifecycle.text.row_files import RowError, read_rows, write_rows
from lifecycle.text.rows import load_rows
from lifecycle.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def encoder(sentencepiece_tokenizer: Tokenizer) -> RowEncoder:
    return RowEncoder(ChatTemplate(sentencepiece_tokenizer))


def texts(tokenizer: Tokenizer, row: EncodedRow) -> tuple[str, str]:
    """(everything, what is learned) with special tokens written out."""
    assert len(row.ids) == len(row.loss_mask)
    learned = [i for i, is_learned in zip(row.ids, row.loss_mask, strict=True) if is_learned]
    return tokenizer.decode(row.ids, skip_special=False), tokenizer.decode(learned, skip_special=False)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


CHAT = "<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


@pytest.mark.parametrize(
    ("row", "whole", "learned"),
    [
        ({"text": "a </s>"}, "<s>a </s></s>", "a </s></s>"),
        ({"prompt": "q", "completion": " a"}, "<s>q a</s>", " a</s>"),
        ({"messages": [user("q"), assistant("a")]}, CHAT, "a<|im_end|>\n"),
        ({"prompt": [user("q")], "completion": [assistant("a")]}, CHAT, "a<|im_end|>\n"),
        ({"prompt": [user("q")], "completion": "a"}, CHAT, "a<|im_end|>\n"),
    ],
)
def test_fine_tuning_rows(
    sentencepiece_tokenizer: Tokenizer, encoder: RowEncoder, row: dict, whole: str, learned: str
) -> None:
    encoded = encoder.encode_chat(row)
    assert texts(sentencepiece_tokenizer, encoded) == (whole, learned)
    assert encoded.ids.count(sentencepiece_tokenizer.bos_id) == 1
    assert encoded.ids.count(sentencepiece_tokenizer.eos_id) <= 1


def test_the_answers_of_a_prompt_are_not_learned(sentencepiece_tokenizer: Tokenizer, encoder: RowEncoder) -> None:
    row = {"prompt": [user("q"), assistant("before"), user("r")], "completion": [assistant("a")]}
    assert texts(sentencepiece_tokenizer, encoder.encode_chat(row))[1] == "a<|im_end|>\n"


CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_that_the_template_cuts_is_not_learned_from_its_rest(
    sentencepiece_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Thoughts are cut from earlier answers: in a row of several turns the model would learn to answer without them."""
    encoder = RowEncoder(ChatTemplate(sentencepiece_tokenizer, CUTTING))
    turns = [user("q"), assistant("<think>h</think>a"), user("r"), assistant("<think>i</think>b")]
    last = encoder.encode_chat({"prompt": turns[:3], "completion": turns[3:]})
    whole, learned = texts(sentencepiece_tokenizer, last)
    assert learned == "<think>i</think>b<|im_end|>" and "<|im_start|>assistant\na<|im_end|>" in whole
    write_rows(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": turns[:2]}])
    kept, report = load_rows(tmp_path / "rows.jsonl", encoder.encode_chat, seq_len=200)
    assert texts(sentencepiece_tokenizer, kept[0])[1] == "<think>h</think>a<|im_end|>" and report.kept == 1
    (reason,) = report.dropped
    assert "leaves out a part of an earlier answer; make a row of each answer" in reason


@pytest.mark.parametrize(
    ("row", "learned"),
    [
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, ("yes</s>", "no</s>")),
        ({"chosen": "Q: is it so? A: yes", "rejected": "Q: is it so? A: no"}, (" yes</s>", " no</s>")),
        (
            {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
            ("yes<|im_end|>\n", "no<|im_end|>\n"),
        ),
        (
            {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]},
            ("yes<|im_end|>\n", "no<|im_end|>\n"),
        ),
    ],
)
def test_preference_rows(
    sentencepiece_tokenizer: Tokenizer, encoder: RowEncoder, row: dict, learned: tuple[str, str]
) -> None:
    pair = encoder.encode_pair(row).segments
    assert tuple(texts(sentencepiece_tokenizer, answer)[1] for answer in pair) == learned
    prompts = [[i for i, m in zip(r.ids, r.loss_mask, strict=True) if not m][: r.loss_mask.index(True)] for r in pair]
    assert prompts[0] == prompts[1]


def test_rows_that_teach_nothing_are_dropped_counted_and_listed(encoder: RowEncoder, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [user("q"), assistant("a")]},
        {"messages": [user("q")]},
        {"prompt": "q", "completion": ""},
        {"text": "word " * 200},
        {"text": "a word"},
    ]
    write_rows(path, rows)
    kept, report = load_rows(path, encoder.encode_chat, seq_len=64)
    assert [report.name(number) for number in range(len(kept))] == [f"{path}:1", f"{path}:5"]
    plain = report.plain()
    assert (plain["rows"], plain["kept"]) == (5, 2)
    assert plain["dropped"] == {
        "empty assistant mask: no assistant message with a content": 1,
        "empty completion": 1,
        "longer than 64 tokens": 1,
    }
    assert [example.split(": ")[0] for example in plain["examples"]] == [f"{path}:{line}" for line in (2, 3, 4)]
    json.dumps(plain)


def test_pairs_that_teach_nothing_are_dropped(encoder: RowEncoder, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write_rows(path, [good, good | {"rejected": "a"}, good | {"rejected": ""}])
    kept, report = load_rows(path, encoder.encode_pair, seq_len=64)
    assert len(kept) == 1
    assert report.dropped == {"chosen and rejected are equal": 1, "empty rejected": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"rows\.jsonl:3: not valid JSON"),
        (b'["text"]', r"rows\.jsonl:3: expected an object with named columns, got list"),
        (b'{"text": "\xff"}', r"rows\.jsonl:3: not UTF-8"),
        (b'{"prompt": "a"}', r"rows\.jsonl:3: columns prompt; expected messages, or prompt and completion, or text"),
        (b'{"prompt": 1, "completion": "a"}', r"rows\.jsonl:3: prompt and completion must be text"),
        (b'{"messages": []}', r"rows\.jsonl:3: messages: the list is empty"),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', r"rows\.jsonl:3: message 1: unknown role 'bot'"),
        (b'{"text": "\\ud800"}', r"rows\.jsonl:3: .*lone surrogate"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(encoder: RowEncoder, tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(RowError, match=message):
        load_rows(path, encoder.encode_chat, seq_len=64)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "expected prompt and chosen and rejected, or chosen and rejected"),
        ({"chosen": "a", "rejected": [assistant("b")]}, "both be text or both be messages"),
        ({"chosen": 1, "rejected": 2}, "must be text or lists of messages, got int"),
    ],
)
def test_broken_pairs(encoder: RowEncoder, row: dict, message: str) -> None:
    with pytest.raises(RowError, match=message):
        encoder.encode_pair(row)


def test_a_file_with_no_usable_row_is_an_error(encoder: RowEncoder, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"messages": [user("q")]}])
    with pytest.raises(RowError, match=r"no row of 1 is usable:\n.*rows\.jsonl:1: empty assistant mask"):
        load_rows(path, encoder.encode_chat, seq_len=64)
    path.write_text("")
    with pytest.raises(RowError, match="it is empty"):
        load_rows(path, encoder.encode_chat, seq_len=64)
    with pytest.raises(RowError, match="no such file"):
        list(read_rows(tmp_path / "missing.jsonl"))
