"""What is learned of a conversation: what a template marks, else what it has beyond each turn's prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate, Message
from lifecycle.text.probe import missing_abilities
from lifecycle.text.turns import Piece, TurnFinder
from tests.golden.conversations import CALL, REPORT, RESULT, SPECIALS, TWO_CALLS, WEATHER, call
from tests.template_cases import learned, tokenizer_of

TEMPLATES = Path(__file__).parents[1] / "golden/templates"


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTemplate]:
    tokenizer = tokenizer_of(tmp_path_factory.mktemp("bytes"), SPECIALS)
    return {path.stem: ChatTemplate(tokenizer, path.read_text(encoding="utf-8")) for path in TEMPLATES.glob("*.jinja")}


def turns(*contents: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("name", "ends", "last"),
    [
        ("hermes", "<|im_end|>\n", "<|im_end|>\n"),
        ("llama", "<|eot_id|>", "<|eot_id|>"),
        ("gemma", "<end_of_turn>\n", "<end_of_turn>\n"),
        ("inst", "</s>", "</s>"),
        ("phi", "<|end|>\n", "<|end|>\n</s>"),  # the end of the whole text too
        ("plain", "\n\n", "\n\n"),  # text, not a special token
        ("glm", "<|user|>", ""),  # the beginning of the next turn; nothing follows the last
        ("harmony", "<|end|>", "<|return|>"),  # the template has another for the last
    ],
)
def test_the_end_of_a_turn_is_learned_whatever_it_is(
    templates: dict[str, ChatTemplate], name: str, ends: str, last: str
) -> None:
    template = templates[name]
    found = template.render(turns("q", "one", "r", "two"))
    (first,), (second,) = learned(template, found, 1), learned(template, found, 3)
    assert first.endswith("one" + ends) and second.endswith("two" + last)
    closed = template.render(turns("q", "one", "r", "two"), closes=True)
    ending = {"glm": "<|user|>", "plain": "</s>"}.get(name, "")  # what stops the model at last: EOS if nothing else
    assert learned(template, closed, 3) == [second + ending]
    assert closed.ids[-1] in template.stop_ids or closed.ids[-2] in template.stop_ids
    assert template.render(turns("q", "one", "r"), closes=True).ids == template.render(turns("q", "one", "r")).ids


def test_calls_are_learned_with_their_syntax_and_results_are_not(templates: dict[str, ChatTemplate]) -> None:
    arguments = '{"city": "Kiel", "days": [1, 2], "where": {"lat": 54.3}, "now": true, "none": null}'
    name = "get_weather"
    expected = {
        "hermes": f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call><|im_end|>\n',
        "harmony": f" to=functions.{name}<|channel|>commentary json<|message|>{arguments}<|call|>",
    }
    for name, text in expected.items():
        found = templates[name].render([WEATHER, CALL, RESULT, REPORT])
        assert learned(templates[name], found, 1) == [text] and not found.cut
    (both,) = learned(templates["hermes"], templates["hermes"].render([WEATHER, TWO_CALLS, RESULT]), 1)
    assert both.count("</tool_call>") == 2 and both.endswith("</tool_call><|im_end|>\n")
    assert templates["harmony"].render([WEATHER, TWO_CALLS, RESULT]).cut == {1}  # it writes one call of a message


def test_a_prompt_that_opens_thoughts_is_not_learned(templates: dict[str, ChatTemplate]) -> None:
    """DeepSeek's prompt ends with a mark that the answered conversation does not have: both agree before it."""
    template = templates["deepseek"]
    assert learned(template, template.render(turns("q", "one")), 1) == [
        "one</s>".replace("</s>", "<|end_of_sentence|>")
    ]


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}<|im_end|>{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% generation %}{{ eos_token }}{% endgeneration %}"
)


def test_marks_count_and_nothing_else() -> None:
    template = ChatTemplate(ByteTokenizer(), MARKED)
    found = template.render(turns("q", "one", "r", "two"))
    assert template.has_marks and learned(template, found) == ["one", "two", "</s>"]
    assert learned(template, found, 3) == ["two", "</s>"]  # a block without a content is of the newest answer
    assert not ChatTemplate(ByteTokenizer(), "{# {% generation %} #}{{ messages[0].content }}").has_marks


def test_an_empty_block_before_an_answer_belongs_to_it() -> None:
    marked = "{% generation %}{{ m.content }}{% endgeneration %}"
    source = MARKED.replace(marked, "{% generation %}<think>{% endgeneration %}{{ m.content }}")
    template = ChatTemplate(ByteTokenizer(), source)
    found = template.render(turns("q", "one", "r", "two"))
    assert learned(template, found, 1) == ["<think>"] and learned(template, found, 3) == ["<think>", "</s>"]
    assert found.cut == {1, 3}  # what they say is not learned


WORDS = st.text(alphabet="ab <>|\n", max_size=6).map(lambda text: f"x{text}y")


@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(WORDS, min_size=2, max_size=6),
    name=st.sampled_from(["llama", "gemma", "inst", "hermes", "plain"]),
)
def test_the_mask_is_what_a_conversation_has_beyond_the_prompt(
    templates: dict[str, ChatTemplate], contents: Sequence[str], name: str
) -> None:
    """Of the last answer: TRL's mask of a completion, found by rendering both."""
    messages = turns(*contents[: len(contents) // 2 * 2])
    template, variables = templates[name], {"enable_thinking": False} if name == "hermes" else {}
    whole = template.render(messages, variables=variables)
    prompt = template.render(messages[:-1], add_generation_prompt=True, variables=variables).ids
    assert whole.ids[: len(prompt)] == prompt
    assert [index == len(messages) - 1 for index in whole.said_in] == [n >= len(prompt) for n in range(len(whole.ids))]


def test_a_long_conversation_is_rendered_a_few_times_only(templates: dict[str, ChatTemplate]) -> None:
    """Calls with arguments of other numbers and keys are turns of one kind."""
    calls = [
        {"role": "assistant", "content": "", "tool_calls": [call("f", {f"a{i}": i, "b" * (i % 5 + 1): 0.5})]}
        for i in range(30)
    ]
    messages = [WEATHER, *(message for made in calls for message in (made, RESULT)), REPORT]
    renderings: list[int] = []

    class Counting(TurnFinder):
        def turns(self, pieces: Sequence[Piece], roles: Sequence[str], prefix: Any, context: object) -> Any:
            def counted(count: int, is_open: bool) -> Any:
                renderings.append(count)
                return prefix(count, is_open)

            return super().turns(pieces, roles, counted, context)

    template = ChatTemplate(templates["hermes"].tokenizer, templates["hermes"].source)
    template._finder = Counting()
    found = template.render(messages)
    assert not found.cut and {index for index in found.said_in if index >= 0} == set(range(1, len(messages), 2))
    assert len(renderings) <= 8


def test_what_a_template_does_to_rows_of_several_turns_is_told(templates: dict[str, ChatTemplate]) -> None:
    assert missing_abilities(templates["gemma"]) == missing_abilities(ChatTemplate(ByteTokenizer())) == []
    assert any("no prefix property" in line for line in missing_abilities(templates["hermes"]))
    assert any("cuts <think> from earlier answers" in line for line in missing_abilities(templates["hermes"]))
    source = "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{% endfor %}"
    (line,) = missing_abilities(ChatTemplate(ByteTokenizer(), source))
    assert line == "it has no generation prompt: '<|im_start|>assistant\\n' is learned with each answer"
