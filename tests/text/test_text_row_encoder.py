"""Rows of each kind as ids: what is learned, with which label, and how a row that is too long is cut."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatError, ChatTemplate
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_encoder import (
    EncodedGroup,
    EncodedPrompt,
    EncodedRow,
    RowEncoder,
    TemplateOnUse,
    UnusableRow,
    segments_of,
)
from lifecycle.text.row_files import RowError
from lifecycle.text.rows import TooLong, common_length, fit
from lifecycle.text.tokenizer import load_tokenizer

USER = {"role": "user", "content": "q"}
WORDS = ByteTokenizer()
ENCODER = RowEncoder(ChatTemplate(WORDS))
TOOLS = (
    "{{ tools | length if tools else 'no' }} tools{% if loud %}!{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def shown(row: EncodedRow, tokenizer: Tokenizer = WORDS) -> str:
    """The text, with what is learned in brackets."""
    text, before = "", False
    for token_id, is_learned in zip(row.ids, row.loss_mask, strict=True):
        text += ("[" if is_learned else "]") if is_learned != before else ""
        text += tokenizer.decode([token_id], skip_special=False)
        before = is_learned
    return text + ("]" if before else "")


def test_a_pair_has_its_prompt_before_both_answers_and_its_margin() -> None:
    pair = ENCODER.encode_pair({"prompt": "q", "chosen": " a", "rejected": " b", "margin": 2})
    assert [shown(half) for half in pair.segments] == ["<s>q[ a</s>]", "<s>q[ b</s>]"]
    assert pair.values == {"margin": (2.0,)}
    assert ENCODER.encode_pair({"chosen": "a", "rejected": "b"}).values == {}


@pytest.mark.parametrize("margin", [True, "1", float("inf"), 1e39, [1]])
def test_a_margin_is_a_number(margin: object) -> None:
    with pytest.raises(RowError, match="margin must be a number"):
        ENCODER.encode_pair({"chosen": "a", "rejected": "b", "margin": margin})


def test_answers_that_the_model_sees_alike_are_equal() -> None:
    """Written as text and as a message they are the same answer."""
    row = {"prompt": [USER], "chosen": [{"role": "assistant", "content": "a"}], "rejected": "a"}
    with pytest.raises(RowError, match="both be text or both be messages"):
        ENCODER.encode_pair(row)
    told = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    with pytest.raises(UnusableRow, match="chosen and rejected are equal"):
        ENCODER.encode_pair(row | {"rejected": [told]})


@pytest.mark.parametrize(("label", "value"), [(True, 1.0), (False, 0.0), (1, 1.0), (0, 0.0)])
def test_a_label_is_true_or_false(label: object, value: float) -> None:
    row = ENCODER.encode_labelled({"prompt": "q", "completion": "a", "label": label})
    assert row.values == {"label": (value,)} and shown(row.segments[0]) == "<s>q[a</s>]"


@pytest.mark.parametrize("label", [2, -1, 1.0, "true", None, "0"])
def test_any_other_label_is_refused(label: object) -> None:
    with pytest.raises(RowError, match="label must be true or false, or 1 or 0, got"):
        ENCODER.encode_labelled({"prompt": "q", "completion": "a", "label": label})
    with pytest.raises(RowError, match="labels: label 2 must be true or false"):
        ENCODER.encode_steps({"prompt": "q", "completions": ["a", "b"], "labels": [True, label]})


def test_each_step_has_its_label_at_its_last_token() -> None:
    row = {"prompt": "q", "completions": ["one", "two"], "labels": [True, False]}
    (segment,) = ENCODER.encode_steps(row).segments
    assert shown(segment) == "<s>qone[\n]two[\n]"
    assert segment.labels is not None
    assert [label for label, is_end in zip(segment.labels, segment.loss_mask, strict=True) if is_end] == [1.0, 0.0]
    apart = RowEncoder(ChatTemplate(WORDS), step_separator="").encode_steps(row).segments[0]
    assert shown(apart) == "<s>qon[e]tw[o]"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": [True]}, "labels must be a list with one for each of completions"),
        ({"completions": "one"}, "completions a list of texts"),
        ({"completions": [1, 2]}, "completions a list of texts"),
        ({"prompt": [USER]}, "prompt must be text"),
        ({"completions": [], "labels": []}, "no steps"),
    ],
)
def test_broken_steps(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        ENCODER.encode_steps({"prompt": "q", "completions": ["one", "two"], "labels": [True, False]} | changes)


def test_a_prompt_ends_where_the_answer_begins_and_keeps_its_columns() -> None:
    said = ENCODER.encode_prompt({"prompt": [USER], "answer": 4, "tests": ["a"]})
    assert isinstance(said, EncodedPrompt) and said.columns == {"answer": 4, "tests": ["a"]}
    assert WORDS.decode(said.ids, skip_special=False).endswith("<|im_start|>assistant\n")
    assert WORDS.decode(ENCODER.encode_prompt({"prompt": "q"}).ids, skip_special=False) == "<s>q"
    with pytest.raises(RowError, match="prompt ends with the assistant's message"):
        ENCODER.encode_prompt({"prompt": [USER, {"role": "assistant", "content": "a"}]})
    for prompt in ("", []):
        with pytest.raises(UnusableRow, match="empty prompt"):
            ENCODER.encode_prompt({"prompt": prompt})
    for prompt in ([1], 1, {"role": "user"}):
        with pytest.raises(RowError, match="must be text or a list of messages"):
            ENCODER.encode_prompt({"prompt": prompt})


def test_tools_and_variables_of_a_row_reach_the_template() -> None:
    encoder = RowEncoder(ChatTemplate(WORDS, TOOLS))
    row = {"prompt": [USER], "completion": "a"}
    assert shown(encoder.encode_chat(row)) == "no toolsuser: q<|im_end|>assistant: [a<|im_end|>]"
    tool = {"type": "function", "function": {"name": "f"}}
    for tools in ([tool], '[{"type": "function", "function": {"name": "f"}}]'):
        told = encoder.encode_chat(row | {"tools": tools, "chat_template_kwargs": {"loud": True}})
        assert shown(told).startswith("1 tools!user")
    for nothing in ([], "", "[]"):
        assert shown(encoder.encode_chat(row | {"tools": nothing})).startswith("no tools")
    pair = {"prompt": [USER], "chosen": "a", "rejected": "b", "tools": [tool]}
    assert all(shown(half).startswith("1 tools") for half in encoder.encode_pair(pair).segments)
    assert WORDS.decode(encoder.encode_prompt({"prompt": [USER], "tools": [tool]}).ids).startswith("1 tools")


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"tools": "[{"}, "tools: not valid JSON"),
        ({"tools": '{"name": "f"}'}, "tools must be a list of JSON schemas"),
        ({"tools": ["f"]}, "tools must be a list of JSON schemas"),
        ({"chat_template_kwargs": "{}"}, "chat_template_kwargs must be a mapping, got str"),
        ({"chat_template_kwargs": {"lout": True}}, "the chat template reads no 'lout'; did you mean 'loud'"),
        ({"chat_template_kwargs": {"messages": []}}, "messages is not a template's own variable"),
    ],
)
def test_what_the_template_cannot_be_told_is_refused(columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        RowEncoder(ChatTemplate(WORDS, TOOLS)).encode_chat({"prompt": [USER], "completion": "a"} | columns)


def test_names_of_special_tokens_in_text_are_tokens_when_the_run_says_so() -> None:
    text = "<s><|im_start|>user\nq<|im_end|></s>"
    plain, special = ENCODER.encode_chat({"text": text}), RowEncoder(ENCODER._template, special_tokens=True)
    assert plain.ids[:2] == [WORDS.bos_id, ord("<")] and len(plain.ids) == len(text) + 2
    told = special.encode_chat({"text": text}).ids
    assert told == [WORDS.bos_id, WORDS.special_ids["<|im_start|>"], *b"user\nq", 260, WORDS.eos_id]  # each once
    answer = special.encode_chat({"prompt": "<s>q", "completion": "a</s>"})
    assert shown(answer) == "<s>q[a</s>]"


def test_contexts_that_do_not_begin_with_bos_have_none() -> None:
    words = ByteTokenizer()
    words.adds_bos = False
    encoder = RowEncoder(ChatTemplate(words))
    assert shown(encoder.encode_chat({"prompt": "q", "completion": "a"})) == "q[a</s>]"
    assert shown(encoder.encode_chat({"text": "a"})) == "[a</s>]"


SEGMENTS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4)


@given(sizes=SEGMENTS, seq_len=st.integers(4, 60), truncation=st.sampled_from(["drop", "keep_start", "keep_end"]))
def test_what_is_cut_fits_and_keeps_an_end(sizes: list[tuple[int, int]], seq_len: int, truncation: str) -> None:
    """A group fits its row together, however long one of its segments is beside another."""
    made = [
        EncodedRow(
            [*range(number, number + asked + said)],
            [False] * asked + [True] * said,
            [float(i) for i in range(asked + said)],
        )
        for number, (asked, said) in enumerate(sizes)
    ]
    group = EncodedGroup(tuple(made), {"margin": (1.0,)})
    total = sum(len(row.ids) for row in made)
    try:
        fitted = fit(group, seq_len, truncation)
    except TooLong as error:
        assert total > seq_len and truncation == "drop" and error.length == total
        return
    except UnusableRow as error:
        assert total > seq_len and truncation in str(error)
        return
    assert (fitted is group) == (total <= seq_len) and fitted.values == group.values
    most = max(len(row.ids) for row in fitted.segments)
    assert sum(len(row.ids) for row in fitted.segments) <= seq_len
    for whole, part in zip(made, fitted.segments, strict=True):
        assert whole.labels is not None
        kept = slice(len(part.ids)) if truncation == "keep_start" else slice(len(whole.ids) - len(part.ids), None)
        assert (part.ids, part.loss_mask, part.labels) == (whole.ids[kept], whole.loss_mask[kept], whole.labels[kept])
        assert any(part.loss_mask[1:]) and len(part.ids) == min(len(whole.ids), most)
    if fitted is not group:  # none could be longer
        assert sum(min(len(row.ids), most + 1) for row in made) > seq_len


def test_a_pair_fits_its_row_together() -> None:
    """Half of the row for each would drop this pair."""
    pair = ENCODER.encode_pair({"prompt": "q", "chosen": "a" * 40, "rejected": "b"})
    assert [len(half.ids) for half in pair.segments] == [43, 4]
    assert fit(pair, 47, "drop") is pair
    with pytest.raises(TooLong, match="longer than 46 tokens"):
        fit(pair, 46, "drop")
    assert [len(half.ids) for half in segments_of(fit(pair, 46, "keep_start"))] == [42, 4]
    ends = ENCODER.encode_pair({"prompt": "q", "chosen": "a" * 40 + "b", "rejected": "a" * 40 + "c"})
    assert len(fit(ends, 60, "keep_end").segments) == 2
    with pytest.raises(UnusableRow, match="chosen and rejected are equal in 60 tokens"):
        fit(ends, 60, "keep_start")


def test_lengths_share_what_there_is() -> None:
    assert [common_length(lengths, 10) for lengths in ([20], [20, 20], [2, 20], [3, 3], [1, 2, 20])] == [10, 5, 8, 3, 7]


GOLDEN = Path(__file__).parents[1] / "golden" / "rows"


@pytest.mark.parametrize("kind", ["chat", "pairs", "labelled"])
def test_ids_and_what_is_learned_are_those_of_trl(kind: str) -> None:
    """A line's end that the template writes behind the last turn included."""
    tokenizer = load_tokenizer(GOLDEN)
    encode = RowEncoder(ChatTemplate.load(GOLDEN, tokenizer)).encoding(kind)
    golden = json.loads((GOLDEN / "rows.json").read_text(encoding="utf-8"))[kind]
    for known in golden:
        for segment, theirs in zip(segments_of(encode(known["row"])), known["segments"], strict=True):
            assert segment.ids == theirs["ids"]
            assert segment.loss_mask == [at >= theirs["learned"] for at in range(len(segment.ids))]
    assert len(golden) >= 2


def test_rows_of_text_need_no_chat_template(hf_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((hf_folder / "tokenizer.json").read_text())
    raw["added_tokens"] = raw["added_tokens"][:1]  # no <|im_start|>
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(tmp_path)
    encoder = RowEncoder(TemplateOnUse(tmp_path, tokenizer))
    assert shown(encoder.encode_chat({"text": "a"}), tokenizer) == "[a<|endoftext|>]"
    with pytest.raises(ChatError, match="the tokenizer has no special token"):
        encoder.encode_chat({"messages": [USER, {"role": "assistant", "content": "a"}]})
