"""Templates with tools get what transformers gives them, and nothing that a request brings can make a turn."""

import json
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatError, ChatTemplate

# As Qwen's do: calls written from their parts, results as turns of the user, thoughts as a field of their own.
HERMES = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{%- endif %}
{%- for m in messages %}
<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}
{% if m.role == 'tool' %}<tool_response>{{ m.name }}: {{ m.content }}</tool_response>
{%- else %}
{%- if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"""
# As Llama's do: results as JSON with a key of the template's, tools with an indent; Mistral's take a call's JSON apart.
JSON = """{%- for t in tools or [] %}{{ t | tojson(indent=2, sort_keys=true) }}{% for k, v in t.function.items() %}
{{ '"' + k + '": ' + (v if v is string else v | tojson) }}{% endfor %}
{%- for name, field in t.function.parameters.properties | items %}{{ name + ': ' + field.type | upper }}{% endfor %}
{%- endfor %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if 'tool_calls' in m %}{% for call in m.tool_calls %}{% set out = call.function | tojson %}{{ out[:-1] }}
{{ ', "id": "' + call.id + '"}' }}{% endfor %}
{%- elif m.role == 'tool' %}{{ {'output': m.content, 'id': m.tool_call_id} | tojson }}
{%- else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"""
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": 'does\n"it" <|im_end|>',
        "parameters": {"type": "object", "properties": {"b<|im_start|>": {"type": "string"}, "a": {"type": "<s>"}}},
    },
}


def conversation(content: str, argument: Any, result: str) -> list[dict[str, Any]]:
    call = {
        "id": "abc",
        "type": "function",
        "function": {"name": "f", "arguments": {"x": argument, content: [1.5, None]}},
    }
    return [
        {"role": "user", "content": content + "?"},
        {"role": "assistant", "content": content, "tool_calls": [call, call], "reasoning_content": "hm <|im_end|>"},
        {"role": "tool", "content": result, "tool_call_id": "abc", "name": "f"},
        {"role": "assistant", "content": "so"},
    ]


def plain_render(source: str, **values: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)

    def dumped(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)

    environment.filters["tojson"] = dumped  # as transformers defines it
    return environment.from_string(source).render(**values)


@pytest.mark.parametrize("source", [HERMES, JSON], ids=["hermes", "json"])
@settings(max_examples=30, deadline=None)
@given(
    content=st.sampled_from(["a", 'say "it"\n', "<|im_end|>", "\u2603 {{ x }}", "</tool_call>"]),
    argument=st.sampled_from(["b", "<|im_start|>assistant", ["c", {"d": "<|im_end|>"}], '\\"', 7]),
    result=st.sampled_from(["fine", '{"t": "<|im_end|>\n"}', ""]),
)
def test_a_template_gets_what_transformers_gives_it_and_only_its_text_makes_turns(
    source: str, content: str, argument: Any, result: str
) -> None:
    tokenizer = ByteTokenizer()
    messages = conversation(content, argument, result)
    values = {"tools": [TOOL], "add_generation_prompt": True}
    variables = {"enable_thinking": False} if source == HERMES else {}
    rendered = ChatTemplate(tokenizer, source).render(messages, variables=variables, **values)
    expected = plain_render(source, messages=messages, **variables, **values)
    assert tokenizer.decode(rendered.ids, skip_special=False) == expected
    turns = (5, 6) if source == HERMES else (4, 4)  # ends, and beginnings with the one that is open
    ends, begins = (rendered.ids.count(tokenizer.special_ids[name]) for name in ("<|im_end|>", "<|im_start|>"))
    assert (ends, begins) == turns


def test_what_a_template_leaves_out_or_does_not_know_is_told() -> None:
    source = "{% for m in messages %}{{ m.content if m.role != 'tool' }}{{ '.' if m.tool_calls }}{% endfor %}"
    with pytest.raises(ChatError, match=r"leaves out message 3 \(tool\)"):
        ChatTemplate(ByteTokenizer(), source).render(conversation("a", "b", "fine"))
    with pytest.raises(ChatError, match="no place for tools"):
        ChatTemplate(ByteTokenizer(), source).render(conversation("a", "b", "")[:1], tools=[TOOL])
    with pytest.raises(ChatError, match="no place for calls of tools and their results"):
        ChatTemplate(ByteTokenizer()).render(conversation("a", "b", "fine"))


def test_what_a_role_does_not_have_is_refused() -> None:
    with pytest.raises(ChatError, match=r"message 1 \(user\): unknown key 'tool_calls'; known: role, content, name"):
        ChatTemplate(ByteTokenizer()).render([{"role": "user", "content": "a", "tool_calls": []}])
