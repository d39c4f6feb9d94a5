"""Grammars of answers accept what a model should write, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lifecycle.inference.grammar import Grammars
from lifecycle.serving.chat_schemas import Tool
from lifecycle.serving.errors import RequestError
from lifecycle.serving.grammars import calls_grammar, harmony_grammar, structured_grammar, thinking_grammar
from lifecycle.serving.schemas import StructuredOutputs
from lifecycle.text.answer import AnswerParser
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.calls import FORMS, CallForm
from lifecycle.text.harmony import TOKENS as HARMONY
from lifecycle.text.interface import Tokenizer
from lifecycle.text.thoughts import MARKS
from lifecycle.text.tokenizer import load_tokenizer

TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}})
    for name, parameters in {
        "get_weather": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "see https://x // # y"},
                "days": {"$ref": "#/$defs/n"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"n": {"type": "integer"}},
        },
        "f-1": None,
    }.items()
]
OBJECTS = {
    form.name: (
        f'{{"name": "get_weather", "{form.arguments}": {{"city": "\u2603 \\"x\\"", "days": 3}}}}',
        f'{{"name": "f-1", "{form.arguments}": {{}}}}',
    )
    for form in FORMS
}
CALLED = [("get_weather", {"city": '\u2603 "x"', "days": 3}), ("f-1", {})]


def written(form: CallForm, *numbers: int) -> str:
    """Calls as a model of this form writes them."""
    objects = [OBJECTS[form.name][number] for number in numbers]
    if form.between:
        pairs = [
            (CALLED[number][0], OBJECTS[form.name][number].partition('"arguments": ')[2][:-1]) for number in numbers
        ]
        return "".join(f"{form.opening}{name}{form.between}{arguments}" for name, arguments in pairs)
    if form.is_list:
        return f"{form.opening}[{', '.join(objects)}]"
    if form.is_bare:
        return "".join(objects)
    return "\n".join(f"{form.opening}\n{one}\n{form.closing}" for one in objects)


@pytest.fixture(scope="module", params=["text", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, with the marks as text and as special tokens."""
    if request.param == "text":
        return ByteTokenizer()
    folder: Path = tmp_path_factory.mktemp("special")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = {name for form in FORMS for name in (form.opening, form.closing, form.between)} | {*MARKS[0], *HARMONY}
    raw.add_special_tokens(["</s>", *sorted(names - {""})])
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return load_tokenizer(folder)


def accepts(tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether the whole text is in the grammar, with its special tokens as tokens."""
    constraint = Grammars(tokenizer, ()).constraint(grammar).copy()
    parts = tokenizer.split_specials(text)
    ids = [i for part, special in parts for i in (tokenizer.encode(part) if special is None else [special])]
    return constraint.matcher.validate_tokens(ids) == len(ids) and constraint.matcher.consume_tokens(ids) and (
        constraint.matcher.is_accepting()
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_that_are_required_are_written_in_the_form_and_read_back(form: CallForm, tokenizer: Tokenizer) -> None:
    many = calls_grammar(form, TOOLS, tokenizer, is_required=True, is_single=False, other=None)
    one = calls_grammar(form, TOOLS, tokenizer, is_required=True, is_single=True, other=None)
    for numbers in ((0,), (1,), (0, 1)):
        text = written(form, *numbers)
        assert accepts(tokenizer, many, text) == (len(numbers) == 1 or not form.is_single)
        assert accepts(tokenizer, one, text) == (len(numbers) == 1)
        if form.is_single and len(numbers) > 1:
            continue
        parser = AnswerParser(None, False, form, [name for name, _ in CALLED])
        parts = [part for part in parser.feed(text) + parser.flush() if part.kind == "call"]
        assert [(part.name, json.loads(part.text)) for part in parts] == [CALLED[number] for number in numbers]
    for wrong in ("hello", written(form, 0)[:-3], written(form, 0).replace("3", '"3"'), written(form, 0) + "x",
                  written(form, 1).replace("f-1", "g")):  # fmt: skip
        assert not accepts(tokenizer, many, wrong)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_that_are_not_required_may_come_after_text(form: CallForm, tokenizer: Tokenizer) -> None:
    grammar = calls_grammar(form, TOOLS, tokenizer, is_required=False, is_single=True, other=None)
    assert accepts(tokenizer, grammar, "hello {") and accepts(tokenizer, grammar, written(form, 0))
    assert accepts(tokenizer, grammar, "")
    if not form.is_bare:
        assert accepts(tokenizer, grammar, "so:\n" + written(form, 1))
    assert not accepts(tokenizer, grammar, written(form, 0).replace("3", '"3"'))
    assert not accepts(tokenizer, grammar, written(form, 1).replace("f-1", "g"))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_or_json_after_thoughts(form: CallForm, tokenizer: Tokenizer) -> None:
    other = structured_grammar(StructuredOutputs.model_validate({"json": {"enum": [5]}}))
    grammar = calls_grammar(form, TOOLS, tokenizer, is_required=False, is_single=False, other=other)
    closed, opened = (thinking_grammar(grammar, MARKS[0], is_open, tokenizer) for is_open in (False, True))
    for answer in ("5", written(form, 0)):
        assert accepts(tokenizer, closed, answer)
        assert accepts(tokenizer, closed, f"<think>\n6 so\n</think>\n\n{answer}")
        assert accepts(tokenizer, opened, f"6 so</think>{answer}")
        assert not accepts(tokenizer, opened, answer)
    assert not accepts(tokenizer, closed, "6") and not accepts(tokenizer, closed, "<think>5")


def test_harmony_has_thoughts_before_a_call_or_an_answer(tokenizer: Tokenizer) -> None:
    if not tokenizer.special_ids.keys() >= {*HARMONY}:
        pytest.skip("the format is one of special tokens")
    thoughts = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "x", "days": 3}'
    five = structured_grammar(StructuredOutputs.model_validate({"json": {"enum": [5]}}))
    required, free, json_or_call, only_json = (
        harmony_grammar(tools, tokenizer, is_required, other)
        for tools, is_required, other in (
            (TOOLS, True, None),
            (TOOLS, False, None),
            (TOOLS, False, five),
            ([], False, five),
        )
    )
    final = "<|channel|>final<|message|>"
    for grammar, good, bad in (
        (required, call, f"{final}5"), (free, f"{final}hello", "hello"), (free, call, call.replace("3", '"3"')),
        (json_or_call, f"{final}5", f"{final}6"), (json_or_call, call, f"{call}5"), (only_json, f"{final}5", call),
    ):  # fmt: skip
        assert accepts(tokenizer, grammar, good) and accepts(tokenizer, grammar, thoughts + good)
        assert not accepts(tokenizer, grammar, bad) and not accepts(tokenizer, grammar, thoughts)


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"json": {"type": "array", "items": {"type": "integer"}}}, "[1,2]", "[1, 2]"),
        ({"json": '{"type": "object", "properties": {"a": {}}, "additionalProperties": false}'}, '{"a":null}', "{ }"),
        ({"json_object": True}, '{"a":[{}]}', "[]"),
        ({"regex": r"a/b\.[0-9]"}, "a/b.5", "a/b.55"),
        ({"choice": ["yes", 'say "\u2603"\n', "a\\b"]}, 'say "\u2603"\n', "ye"),
        ({"grammar": 'start: "a" b*\nb: "b" | "c"'}, "abc", "b"),
        ({"grammar": 'root ::= "a" [bc]+'}, "abc", "a"),  # llama.cpp's GBNF
    ],
)
def test_structured_outputs(asked: dict[str, Any], good: str, bad: str) -> None:
    grammar = structured_grammar(StructuredOutputs.model_validate(asked))
    assert accepts(ByteTokenizer(), grammar, good) and not accepts(ByteTokenizer(), grammar, bad)
    behind = thinking_grammar(grammar, MARKS[0], True, ByteTokenizer())
    assert accepts(ByteTokenizer(), behind, f"hm</think>\n\n{good}") and not accepts(ByteTokenizer(), behind, good)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"type": "array"}, "type array, not object"), ({"x-guidance": {"lenient": True}}, "x-guidance is not supported")],
)
def test_parameters_that_no_call_can_have_are_refused(parameters: dict[str, Any], words: str) -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": parameters}})
    with pytest.raises(RequestError, match=words):
        calls_grammar(FORMS[0], [tool], ByteTokenizer(), True, False, None)
