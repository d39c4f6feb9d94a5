"""What follows an answer: the tokens of the rendered conversation, or a refusal of the template."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lifecycle.rl.environment import EpisodeError
from lifecycle.rl.openings import ANSWER, QUESTION, REPLY, Conversations
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.next_turn import RewrittenError, next_turn, renderable, said
from tests.golden.conversations import SPECIALS
from tests.template_cases import tokenizer_of

TOKENIZER = ByteTokenizer()
BODY = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}BODY{{ '<|im_end|>\n' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


def following(template: ChatTemplate, *messages: dict[str, Any]) -> list[int]:
    """What follows the last answer of a conversation, of which the first message is not the model's."""
    answer = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    before = template.render(list(map(renderable, messages[:answer])), True)
    after = template.render(list(map(renderable, messages)), True)
    return next_turn(before, after, answer, 1, TOKENIZER, template.stop_ids)


@pytest.mark.parametrize("source", [None, BODY.replace("BODY", "{{ m['content'] }}") + OPEN])
def test_what_follows_is_the_rest_of_the_rendered_conversation(source: str | None) -> None:
    template = ChatTemplate(TOKENIZER) if source is None else ChatTemplate(TOKENIZER, source)
    conversation = [QUESTION, ANSWER, REPLY, ANSWER, REPLY]
    more = following(template, *conversation)
    assert TOKENIZER.decode(more, skip_special=False) == "\n<|im_start|>user\njh2b<|im_end|>\n<|im_start|>assistant\n"
    whole = template.render(conversation, True).ids
    assert whole[-len(more) :] == more
    answered = template.render(conversation[:3], True).ids + TOKENIZER.encode("kz4v") + template.stop_ids[1:2]
    assert answered + more == whole
    assert following(template, QUESTION, ANSWER | {"content": " \n"}, REPLY) == more


CUTTING = (
    "{% if m.role == 'assistant' and not loop.last %}{{ m['content'][1:] }}{% else %}{{ m['content'] }}{% endif %}"
)
RENAMING = "{% if loop.first and messages | length > 1 %}{{ 'earlier' }}{% endif %}{{ m['content'] }}"
THINKING = (
    "{% if m.reasoning_content and loop.last %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m['content'] }}"
)


@pytest.mark.parametrize(
    ("source", "message", "says"),
    [
        (BODY.replace("BODY", CUTTING) + OPEN, ANSWER, "leaves out a part of an earlier answer"),
        (BODY.replace("BODY", RENAMING) + OPEN, ANSWER, "writes earlier turns in another way"),
        (BODY.replace("BODY", THINKING) + OPEN, ANSWER | {"reasoning_content": "fy9p"}, "such as its thoughts"),
        (BODY.replace("BODY", "{{ m['content'] }}") + OPEN.replace("t\n", "t\n<think></think>"), ANSWER, "another way"),
        ("{{ bos_token }}{% for m in messages %}{{ m.role + m['content'] + '\n' }}{% endfor %}{% if "
         "add_generation_prompt %}assistant{% endif %}", ANSWER, "no token that ends an answer"),
    ],
)  # fmt: skip
def test_a_template_that_rewrites_earlier_turns_is_refused_before_anything_is_played(
    source: str, message: dict[str, Any], says: str
) -> None:
    template = ChatTemplate(TOKENIZER, source)
    with pytest.raises(RewrittenError, match=says):
        following(template, QUESTION, message, REPLY)
    with pytest.raises(EpisodeError, match=says):
        Conversations(template).require_turns({}, ())


def test_tools_need_a_place_in_the_template() -> None:
    with pytest.raises(EpisodeError, match="no place for them"):
        Conversations(ChatTemplate(TOKENIZER)).require_turns({}, [TOOL])
    Conversations(ChatTemplate(TOKENIZER)).require_turns({}, [])


NO_PLACE, NO_END = "no place for them", "no token that ends an answer"


@pytest.mark.parametrize(
    ("name", "as_user", "by_tool"),
    [
        ("deepseek", "writes earlier turns in another way", NO_PLACE),
        ("gemma", "", ""),
        ("glm", "", NO_PLACE),  # <|user|> ends an answer, and begins what follows
        ("harmony", NO_END, NO_END),  # a last answer ends with <|return|>, an earlier one with <|end|>
        ("hermes", "such as its thoughts", ""),  # which stay before a tool's result, as in Qwen 3's
        ("llama", "", NO_PLACE),
        ("plain", NO_END, NO_PLACE),
    ],
)
def test_which_published_templates_let_episodes_go_on(tmp_path: Path, name: str, as_user: str, by_tool: str) -> None:
    source = (Path(__file__).parents[1] / f"golden/templates/{name}.jinja").read_text(encoding="utf-8")
    conversations = Conversations(ChatTemplate(tokenizer_of(tmp_path, SPECIALS), source))
    for tools, says in (([], as_user), ([TOOL], by_tool)):
        with pytest.raises(EpisodeError, match=says) if says else nullcontext():
            conversations.require_turns({}, tools)


def test_a_message_is_taken_apart() -> None:
    source = "{{ tools }}<think></think><tool_call></tool_call>" + BODY.replace("BODY", "{{ m['content'] }}") + OPEN
    abilities = Conversations(ChatTemplate(TOKENIZER, source)).abilities
    text = (
        'hm</think>well <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "f"}</tool_call>'
    )
    message = said(text, abilities.parser(["f"], True), 3, 9)
    calls = message.pop("tool_calls")
    assert message == {"role": "assistant", "content": "well", "reasoning_content": "hm"}
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [
        ("000000003", '{"a": 1}'), ("000000004", "{}"),
    ]  # fmt: skip
    assert said("f", abilities.parser(["f"], False), 0, 9) == {"role": "assistant", "content": "f"}
    broken = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}
    assert renderable(broken)["tool_calls"][0]["function"]["arguments"] == "{}"
