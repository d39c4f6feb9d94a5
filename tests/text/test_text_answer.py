"""Thoughts and calls are taken out of an answer, however it is cut, and nothing else is."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.answer import AnswerParser
from lifecycle.text.calls import FORMS, CallForm, form_of
from lifecycle.text.chat import DEFAULT_TEMPLATE
from lifecycle.text.harmony import TOKENS, HarmonyParser, is_harmony
from lifecycle.text.parts import Part, joined
from lifecycle.text.thoughts import MARKS, marks_of

THINK = MARKS[0]
BY_NAME = {form.name: form for form in FORMS}
TOOLS = ("get_weather", "f")
SAID = [
    "<think>", "</think>", "</thi", "<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]",
    "<|python_tag|>", '{"name": "f", "arguments": {"a": [1, "}"]}}', '{"name": "get_weather", "parameters": {}}',
    '{"name": "other"', '"name"', ": ", '"f"', '"arguments"', '{"a": "\\"', "{", "}", "[", "]", ", ", "f", " ", "\n",
    "x", "\u2603", '<tool_call>\n{"name": "f", "arg', '[TOOL_CALLS]f[ARGS]', '[TOOL_CALLS] [{"name": "f", ',
]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(SAID), max_size=9).map("".join)


def parsed(pieces: list[str], form: CallForm | None = None, marks: Any = THINK, is_open: bool = False) -> list[Part]:
    parser = AnswerParser(marks, is_open, form, TOOLS)
    return joined([part for piece in pieces for part in parser.feed(piece)] + parser.flush())


HARMONY = [
    *TOKENS, "analysis", "final", "commentary", " to=functions.f ", " to=functions.other ", "json", '{"a": 1}', "<|en",
    "x", "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>", " ",
]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(answer=st.lists(st.sampled_from(HARMONY), max_size=9).map("".join), data=st.data())
def test_any_cutting_of_harmony_gives_the_same_parts(answer: str, data: st.DataObject) -> None:
    def parse(pieces: Iterable[str]) -> list[Part]:
        parser = HarmonyParser(TOOLS)
        return joined([part for piece in pieces for part in parser.feed(piece)] + parser.flush())

    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert parse(pieces) == parse(answer) == parse([answer])


def test_harmony_has_thoughts_calls_and_text() -> None:
    messages = [
        "<|channel|>analysis<|message|>hm",
        "<|channel|>commentary<|message|>So: ",
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": [1]}',
        " to=functions.get_weather<|channel|>commentary json<|message|>{}",
        "<|channel|>commentary to=functions.other<|message|>{}",
        "<|channel|>final<|message|>yes",
    ]
    parser = HarmonyParser(TOOLS)
    parts = parser.feed("<|end|><|start|>assistant".join(messages)) + parser.flush()
    assert calls(parts) == [("f", {"a": [1]}), ("get_weather", {})] and texts(parts, "thought") == "hm"
    assert texts(parts) == "So: <|start|>assistant<|channel|>commentary to=functions.other<|message|>{}yes"
    for answer in ("no messages", "<|channel|>analysis<|message|>hm<|end|><|start|>assis"):
        parser = HarmonyParser(TOOLS)
        (part,) = joined(parser.feed(answer) + parser.flush())
        assert part == (Part("text", answer) if answer[0] == "n" else Part("thought", "hm"))


def texts(parts: list[Part], kind: str = "text") -> str:
    return "".join(part.text for part in parts if part.kind == kind)


def calls(parts: list[Part]) -> list[tuple[str | None, Any]]:
    return [(part.name, json.loads(part.text)) for part in parts if part.kind == "call"]


@pytest.mark.parametrize("form", [None, *FORMS], ids=lambda form: form.name if form else "none")
@settings(max_examples=120, deadline=None)
@given(answer=ANSWERS, is_open=st.booleans(), data=st.data())
def test_any_cutting_gives_the_same_parts(
    form: CallForm | None, answer: str, is_open: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole = parsed([answer], form, is_open=is_open)
    assert parsed(pieces, form, is_open=is_open) == whole
    assert parsed(list(answer), form, is_open=is_open) == whole
    numbers = [part.call for part in whole if part.kind == "call"]
    assert numbers == list(range(len(numbers)))  # each call in one piece, in order
    assert all(part.name in TOOLS for part in whole if part.kind == "call")


@settings(max_examples=60, deadline=None)
@given(answer=st.text(max_size=30))
def test_without_marks_an_answer_is_its_text(answer: str) -> None:
    assert texts(parsed([answer], None, None)) == answer


@pytest.mark.parametrize(
    ("answer", "is_open", "thought", "text"),
    [
        ("<think>\nhm\n\nso\n</think>\n\nyes\n", False, "hm\n\nso", "yes\n"),
        ("\n<think>hm</think>yes", False, "hm", "yes"),
        ("hm\n</think>\n\nyes", True, "hm", "yes"),
        ("<think>\n\n</think>\n\nyes", False, "", "yes"),
        ("<think>no end </thi", False, "no end </thi", ""),
        ("  no thoughts: <think>x</think>", False, "", "  no thoughts: <think>x</think>"),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        ("<thin", False, "", "<thin"),
        ("", True, "", ""),
    ],
)
def test_thoughts(answer: str, is_open: bool, thought: str, text: str) -> None:
    parts = parsed([answer], is_open=is_open)
    assert (texts(parts, "thought"), texts(parts)) == (thought, text)


WEATHER = '{"name": "get_weather", "arguments": {"city": "a \\"b\\" }", "days": [1, {"x": 2}]}}'
ASKED = ("get_weather", {"city": 'a "b" }', "days": [1, {"x": 2}]})


@pytest.mark.parametrize(
    ("form", "answer", "expected", "text"),
    [
        ("hermes", f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>", [ASKED], "Let me see."),
        ("hermes", f'<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{{"arguments": {{}}, "name": "f"}}</tool_call>\n',
         [ASKED, ("f", {})], ""),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', [("f", {})], ""),
        ("hermes", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>', [],
         '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
        ("hermes", "write <tool_call> first", [], "write <tool_call> first"),
        ("hermes", '<tool_call>{"name": "f", "arguments": "x"}', [], '<tool_call>{"name": "f", "arguments": "x"}'),
        ("hermes", '<tool_call>{"name": ', [], '<tool_call>{"name": '),
        ("hermes", "a <tool_ca", [], "a <tool_ca"),
        ("hermes", '<tool_call>{"name": {"a": 1}}</tool_call>', [], '<tool_call>{"name": {"a": 1}}</tool_call>'),
        ("llama3_json", '\n{"name": "f", "parameters": {"a": null}}', [("f", {"a": None})], ""),
        ("llama3_json", '<|python_tag|>{"name": "f", "arguments": {"a": 1.5}}', [("f", {"a": 1.5})], ""),
        ("llama3_json", '{"answer": 5}', [], '{"answer": 5}'),
        ("llama3_json", 'So: {"name": "f", "parameters": {}}', [], 'So: {"name": "f", "parameters": {}}'),
        ("mistral", f'[TOOL_CALLS] [{WEATHER}, {{"name": "f", "arguments": {{}}}}]', [ASKED, ("f", {})], ""),
        ("mistral", "[TOOL_CALLS] none", [], "[TOOL_CALLS] none"),
        ("mistral_args", '[TOOL_CALLS]get_weather[ARGS]{"city": "x"}[TOOL_CALLS]f[ARGS] {}',
         [("get_weather", {"city": "x"}), ("f", {})], ""),
        ("mistral_args", '[TOOL_CALLS]f{"a\\n": 1}', [("f", {"a\n": 1})], ""),
        ("mistral_args", "[TOOL_CALLS]other[ARGS]{}", [], "[TOOL_CALLS]other[ARGS]{}"),
        ("mistral_args", "[TOOL_CALLS][TOOL_CALLS]f[ARGS]{}", [("f", {})], "[TOOL_CALLS]"),
        ("mistral_args", f"[TOOL_CALLS]{' ' * 40}f [ARGS]{{}}", [("f", {})], ""),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": {"x": true}}]', [("f", {"x": True})], ""),
    ],
)  # fmt: skip
def test_calls(form: str, answer: str, expected: list[Any], text: str) -> None:
    for pieces in ([answer], list(answer)):
        parts = parsed(pieces, BY_NAME[form])
        assert (calls(parts), texts(parts)) == (expected, text)


def test_a_call_is_passed_on_while_it_is_written() -> None:
    parser = AnswerParser(THINK, False, BY_NAME["hermes"], TOOLS)
    pieces = [
        "<think>a",
        "b</think><tool_call>",
        '{"name": ',
        '"f"',
        ', "arguments": {"a"',
        ": 1}",
        "}",
        "</tool_call>",
    ]
    found = [parser.feed(piece) for piece in pieces]
    assert found[0] == [Part("thought", "a")] and found[1] == [Part("thought", "b")]
    assert found[4] == [Part("call", '{"a"', 0, "f")] and found[5] == [Part("call", ": 1}", 0)]
    assert found[2] == found[3] == found[6] == found[7] == parser.flush() == []


def test_an_unfinished_call_keeps_what_it_has() -> None:
    parts = parsed(['<tool_call>{"name": "f", "arguments": {"a": [1'], BY_NAME["hermes"])
    assert parts == [Part("call", '{"a": [1', 0, "f")]


@pytest.mark.parametrize(
    ("template", "form", "marks"),
    [
        ("{{ tools }}<tool_call>\n{'name': ..}</tool_call><think>", "hermes", THINK),
        ("{{ tools }}<tool_call><function=name>", None, None),
        ("{{ tools }}[TOOL_CALLS] [THINK]", "mistral", MARKS[1]),
        ("{{ tools }}[TOOL_CALLS]name[ARGS]", "mistral_args", None),
        ('{{ tools }}{"name": function name, "parameters": dictionary', "llama3_json", None),
        ("{{ tools }}<|tool_call|>", "granite", None),
        ("{{ tools }}", None, None),
        ("<tool_call>", None, None),
        (DEFAULT_TEMPLATE, None, None),
    ],
)
def test_forms_are_read_from_the_template(template: str, form: str | None, marks: Any) -> None:
    found = form_of(template)
    assert not is_harmony(template) and is_harmony("<|start|>assistant<|channel|>final<|message|>")
    assert (found and found.name, marks_of(template)) == (form, marks)
