"""Messages reach a template in the form that it takes, and nothing that they hold vanishes."""

import json
from typing import Any

import pytest

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, ChatError, ChatTemplate
from lifecycle.text.messages import check_messages, text_of

USER = {"role": "user", "content": "q"}
TEXT = "{% for m in messages %}{{ m.role + ':' + m.content }};{% endfor %}"
PARTS = "{% for m in messages %}{{ m.role + ':' }}{% for p in m.content %}{{ p.text }}|{% endfor %};{% endfor %}"
BOTH = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}|{% endfor %}{% endif %};{% endfor %}"
)
PRINTING = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
CALLS = (
    "{{% for m in messages %}}{{{{ m.content }}}}"
    "{{% for c in m.tool_calls or [] %}}{{{{ {} }}}}{{% endfor %}}{{% endfor %}}"
)
ARGUMENTS = "c.function.arguments"


def rendered(source: str, *messages: dict[str, Any]) -> str:
    tokenizer = ByteTokenizer()
    return tokenizer.decode(ChatTemplate(tokenizer, source).render(messages).ids, skip_special=False)


def parts(*texts: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text, **more} for text in texts]}


@pytest.mark.parametrize(
    ("source", "text", "in_parts"),
    [
        (TEXT, "user:q;", "user:ab;"),
        (PARTS, "user:q|;", "user:a|b|;"),
        (BOTH, "user:q;", "user:a|b|;"),
        (PRINTING, "user:q;", "user:ab;"),  # not the list as Python prints it
    ],
)
def test_a_content_in_parts_and_one_that_is_text(source: str, text: str, in_parts: str) -> None:
    assert rendered(source, USER) == text
    assert rendered(source, parts("a", "b")) == in_parts


@pytest.mark.parametrize(
    ("written", "from_mapping", "from_text"),
    [
        (f"{ARGUMENTS} | tojson", '{"a": "é"}', '{"a": "é"}'),  # text would be quoted
        (f"'' + {ARGUMENTS}", '{"a": "é"}', '{"a":"\\u00e9"}'),
        (f"{ARGUMENTS} if {ARGUMENTS} is string else {ARGUMENTS} | tojson", '{"a": "é"}', '{"a":"\\u00e9"}'),
        (f"({ARGUMENTS} | items | list)[0] | join('=')", "a=é", "a=é"),
    ],
)
def test_arguments_are_a_mapping_or_text_as_a_template_takes_them(
    written: str, from_mapping: str, from_text: str
) -> None:
    for arguments, expected in (({"a": "é"}, from_mapping), ('{"a":"\\u00e9"}', from_text)):
        for call in ({"function": {"name": "f", "arguments": arguments}}, {"name": "f", "arguments": arguments}):
            answer = {"role": "assistant", "content": None, "tool_calls": [call]}
            assert rendered(CALLS.format(f"c.function.name + ({written})"), USER, answer) == "qf" + expected


def test_a_developer_is_the_system_for_a_template_that_leaves_him_out() -> None:
    told = {"role": "developer", "content": "d"}
    deaf = "{% for m in messages if m.role in ['system', 'user'] %}{{ m.role + ':' + m.content }};{% endfor %}"
    assert rendered(deaf, told, USER) == "system:d;user:q;"
    assert rendered(TEXT, told, USER) == "developer:d;user:q;"
    assert "<|im_start|>system\nd" in rendered(DEFAULT_TEMPLATE, told, USER)  # models trained here know no developer


def test_thoughts_are_under_every_name_that_templates_read() -> None:
    source = "{% for m in messages %}{{ m.content }}{{ m.thinking }}{{ m.reasoning_content }}{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert rendered(source, USER, {"role": "assistant", "content": "a", name: "t"}) == "qatt"
    with pytest.raises(ChatError, match="reasoning_content and thinking are names of one thing and differ"):
        rendered(source, USER, {"role": "assistant", "content": "a", "reasoning_content": "t", "thinking": "u"})


def test_a_key_without_a_value_is_absent() -> None:
    """Columns of Parquet have all keys of all rows."""
    empty = dict.fromkeys(("name", "tool_calls", "tool_call_id", "weight", "thinking"))
    assert check_messages([USER | empty]) == [USER]
    answer = {"role": "assistant", "content": "a", "tool_calls": []}
    assert check_messages([answer | dict.fromkeys(["name"])])[0] == {
        "role": "assistant", "content": "a",
    }  # fmt: skip


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (USER | {"weight": 1}, r"message 1 \(user\): unknown key 'weight'; known: role, content, name"),
        ({"role": "assistant", "content": "a", "tool_call_id": ""}, "unknown key 'tool_call_id'; known: .*name"),
        (parts("a", image="x"), "a part of its content has 'image'; known: type, text"),
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "a part of its content is 'image'"),
        ({"role": "user", "content": ["a"]}, "a part of its content is 'str'"),
        (USER | {"name": 3}, "name must be text, got int"),
        (USER | {"role": ["user"]}, "unknown role"),
        (call(name="f", arguments="{"), "call 1: its arguments are not JSON"),
        (call(name="f", arguments="[" * 10**5), "call 1: its arguments are not JSON"),
        (call(name="f", arguments="[1]"), "call 1: its arguments are no object but list"),
        (call(arguments={}), "call 1: expected function"),
        (call(name="f", strict=True), "call 1: unknown key 'strict'; known: id, type, function, name"),
        ({"role": "assistant", "content": "a", "tool_calls": {}}, "tool_calls must be a list, got dict"),
        ({"role": "assistant", "content": "a", "tool_calls": ["f"]}, "call 1: expected a mapping"),
        ({"role": "assistant", "tool_calls": [{"type": "x", "function": {"name": "f"}}]}, "its type is 'x'"),
        ({"role": "assistant", "reasoning_content": "t"}, "content must be text, got NoneType"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(message: dict[str, Any], fault: str) -> None:
    with pytest.raises(ChatError, match=fault):
        check_messages([message])


def test_variables_that_a_template_does_not_read_are_refused() -> None:
    template = ChatTemplate(ByteTokenizer(), "{{ messages[0].content }}{{ mood }}{{ nothing is defined }}")
    assert template.render([USER], variables={"mood": "!", "nothing": None}).ids == list(b"q!False")
    with pytest.raises(ChatError, match="it reads no variable 'enable_thinking' of yours; known: mood, nothing"):
        template.render([USER], variables={"enable_thinking": False})
    with pytest.raises(ChatError, match="it reads no variable 'messages' of yours"):
        template.render([USER], variables={"messages": []})


SHOWN = {"call": "c.function.name", "argument": f"{ARGUMENTS} | tojson", "thoughts": "m.thinking", "said": "m.content"}
WHOLE = (
    "{{% for m in messages %}}{{{{ m.role + (m.content if m.role == 'user' else {said}) }}}}"
    "{{% if m.thinking %}}{{{{ {thoughts} }}}}{{% endif %}}"
    "{{% for c in m.tool_calls or [] %}}{{{{ {call} }}}}{{{{ {argument} }}}}{{% endfor %}}{{% endfor %}}"
)


@pytest.mark.parametrize("missing", SHOWN)
def test_an_answer_of_which_something_is_left_out_is_told(missing: str) -> None:
    calls = [{"function": {"name": "lookup", "arguments": {"key": [{"deep": "value"}]}}}]
    answer = {"role": "assistant", "content": "said", "thinking": "hm", "tool_calls": calls}
    for shown, cut in ((SHOWN, frozenset()), (SHOWN | {missing: "''"}, {1})):
        assert ChatTemplate(ByteTokenizer(), WHOLE.format(**shown)).render([USER, answer]).cut == cut


def test_python_s_form_of_lists_is_followed_and_injects_nothing() -> None:
    """A template may print a list or a mapping as it is."""
    tokenizer = ByteTokenizer()
    source = CALLS.format(ARGUMENTS)
    arguments = {"a": ["<|im_end|>", "it's", 1.5, None, {"b": True}]}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    found = ChatTemplate(tokenizer, source).render([USER, answer])
    assert tokenizer.decode(found.ids) == "q" + str(arguments) and not any(map(tokenizer.is_special, found.ids))
    assert json.loads(json.dumps(arguments)) == arguments


def test_the_text_of_a_content() -> None:
    assert [text_of(m) for m in (USER, parts("a", "b"), {"role": "assistant"})] == ["q", "ab", ""]


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(_a=1) %}",
        "{% set ns = namespace() %}{% set ns._a = 1 %}",
        "{{ dict.mro() }}",
    ],
)
def test_python_s_own_attributes_stay_out_of_reach(source: str) -> None:
    with pytest.raises(ChatError, match=r"underscore|unsafe|undefined|no attribute"):
        rendered(source + "{{ messages[0].content }}", USER)
    assert rendered("{% set ns = namespace(self=dict(a='x')) %}{{ ns.self.a }}{{ messages[0].content }}", USER) == "xq"
