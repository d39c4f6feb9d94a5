"""Tools, structured output and thoughts through OpenAI's own client, on a model that says anything."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from serving_server import Running, start

from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Completion, Event
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.chat_answers import ChatForm
from lifecycle.serving.chat_schemas import ChatRequest
from lifecycle.serving.chats import prepare_chat
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.parsing import parse
from lifecycle.testing.models import SERVED, random_model
from lifecycle.text.answer import AnswerParser
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.calls import FORMS
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.thoughts import MARKS

TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<tool_call>{"name": .., "arguments": ..}</tool_call><|im_end|>{% endif %}
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'tool' %}{{ m.name }}: {% endif %}{{ m.content }}
{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""
ASK: list[Any] = [{"role": "user", "content": "How is it in Kiel?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Kiel", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
STOP: Any = {"type": "function", "function": {"name": "stop"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Kiel", "days": 3}}\n</tool_call>'
SAID = f'So.\n{CALL}\n<tool_call>\n{{"name": "stop", "arguments": {{}}}}\n</tool_call>'


@pytest.fixture(scope="module")
def tools() -> Iterator[Running]:
    model = random_model(5, "c" * 64, SamplingParams(stop_ids=()), **SERVED)
    model = replace(model, template=ChatTemplate(model.tokenizer, TEMPLATE))
    with Engine(model, num_slots=2, max_queue=4) as engine:
        models = {"m": Served(engine)}
        for base in start(models, ServeConfig(port=0), records := []):
            yield Running(base, engine, models, records)


# No thoughts, which a random model would never end, and no further calls
BRIEF = {"111": 100, str(ByteTokenizer().eos_id): 100}


def ask(server: Running, **body: Any) -> Any:
    given: dict[str, Any] = {"model": "m", "messages": ASK, "seed": 4, "max_tokens": 400, "tools": [WEATHER, STOP]}
    return server.client.chat.completions.create(**given | body)


def said_text(text: str) -> dict[str, Any]:
    """Settings with which a model says just this text, whose first character is no mark's."""
    first = str(text.encode()[0])
    return {"extra_body": {"structured_outputs": {"choice": [text]}, "logit_bias": {first: 100}}}


def accumulated(chunks: Any) -> tuple[dict[str, Any], str | None]:
    """The message that a client makes of a stream, as OpenAI's examples do; and why it ended."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for piece in delta.get("tool_calls") or []:
            calls = message["tool_calls"]
            if piece["index"] == len(calls):
                assert piece["id"] and piece["type"] == "function" and piece["function"]["name"]
                calls.append({"name": piece["function"]["name"], "arguments": ""})
            assert piece["index"] == len(calls) - 1
            calls[-1]["arguments"] += piece["function"]["arguments"]
        reason = chunk["choices"][0]["finish_reason"] or reason
    return message, reason


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_must_be_made_is_valid_streamed_or_not(tools: Running, choice: Any) -> None:
    whole = ask(tools, tool_choice=choice, logit_bias=BRIEF).choices[0]
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in whole.message.tool_calls]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None and calls
    for name, arguments in calls:
        if name == "get_weather":
            assert arguments["city"] in ("Kiel", "Bonn") and 1 <= arguments["days"] <= 9 and len(arguments) == 2
        else:
            assert (name, arguments, choice) == ("stop", {}, "required")
    assert choice == "required" or [name for name, _ in calls] == ["get_weather"]
    chunks = ask(tools, tool_choice=choice, logit_bias=BRIEF, stream=True)
    message, reason = accumulated(chunk.model_dump() for chunk in chunks)
    assert [(call["name"], json.loads(call["arguments"])) for call in message["tool_calls"]] == calls
    assert (message["content"], reason) == ("", "tool_calls")


def test_the_clients_own_helper_reads_the_stream(tools: Running) -> None:
    with tools.client.chat.completions.stream(
        model="m", messages=ASK, tools=[WEATHER], tool_choice="required", logit_bias=BRIEF, seed=1
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls and len(message.tool_calls) == 1
    assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Kiel", "Bonn")


def test_text_comes_before_calls_and_results_go_back(tools: Running) -> None:
    whole = ask(tools, **said_text(SAID)).choices[0]
    assert whole.message.content == "So." and whole.finish_reason == "tool_calls"
    arguments = [json.loads(call.function.arguments) for call in whole.message.tool_calls]
    assert arguments == [{"city": "Kiel", "days": 3}, {}]
    message, reason = accumulated(chunk.model_dump() for chunk in ask(tools, **said_text(SAID), stream=True))
    assert (message["content"], reason) == ("So.", "tool_calls")
    assert [json.loads(call["arguments"]) for call in message["tool_calls"]] == arguments
    results = [{"role": "tool", "tool_call_id": call.id, "content": "wind"} for call in whole.message.tool_calls]
    messages = [*ASK, whole.message, *results]
    assert ask(tools, messages=messages, **said_text("Windy.")).choices[0].message.content == "Windy."
    plain = [*ASK, whole.message.model_dump(exclude_none=True), *results]
    tokens = tools.post("/tokenize", model="m", messages=plain, tools=[WEATHER]).json()["tokens"]
    prompt = bytes(i for i in tokens if i < 256).decode()
    assert "get_weather: wind\n" in prompt and "stop: wind\n" in prompt
    assert '{"name": "get_weather", "arguments": {"city": "Kiel", "days": 3}}' in prompt


def test_a_call_of_an_unknown_tool_and_one_without_tools_are_text(tools: Running) -> None:
    said = f"So.{CALL}"
    for body in ({"tools": [STOP]}, {"tool_choice": "none"}, {"tools": None}):
        choice = ask(tools, **body, **said_text(said)).choices[0]
        assert choice.message.content == said and choice.message.tool_calls is None and choice.finish_reason == "stop"


def test_free_calls_have_a_grammar_only_if_they_are_to_be_strict_or_single(tools: Running) -> None:
    """Which costs the others of a batch: what the grammars accept is tested by themselves."""
    strict = {**STOP, "function": {"name": "stop", "strict": True}}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"tool_choice": "none"},
        {"parallel_tool_calls": False},
        {"tools": [strict]},
    )
    for change in changes:
        body = {"model": "m", "messages": ASK, "tools": [WEATHER, STOP], **change}
        chat = prepare_chat(parse(ChatRequest, json.dumps(body).encode()), tools.engine)
        assert (chat.changes["grammar"] is not None) == ("parallel_tool_calls" in change or "tools" in change)


def test_gpt_oss_is_asked_and_read_in_its_own_format(tools: Running) -> None:
    source = "{% for m in messages %}<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}{% endfor %}"
    source += "{% if tools %}{% endif %}{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}"
    tokenizer = tools.engine.model.tokenizer
    model = replace(tools.engine.model, template=ChatTemplate(tokenizer, source))
    engine: Any = SimpleNamespace(model=model, max_seq_len=999, compile=tools.engine.compile)
    pattern = {"type": "regex", "pattern": "[a-c]{4}"}
    body = {"model": "m", "messages": ASK, "reasoning_effort": "low", "response_format": pattern}
    chat = prepare_chat(parse(ChatRequest, json.dumps(body).encode()), engine)
    assert bytes(i for i in chat.prompt if i < 256).endswith(b"low")
    answer = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>abca"
    parts = chat.parser().feed(answer)
    assert [(part.kind, part.text) for part in parts] == [("thought", "hm"), ("text", "abca")]
    assert "final" in chat.changes["grammar"]
    assert chat.abilities.card == {"tool_calls": "harmony", "reasoning": "harmony"}


def test_thoughts_are_a_field_of_their_own(tools: Running) -> None:
    thinking: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}, "max_tokens": 9}
    whole = ask(tools, tools=None, **thinking).choices[0]
    assert whole.message.content == "" and whole.message.reasoning_content and whole.finish_reason == "length"
    message, _ = accumulated(chunk.model_dump() for chunk in ask(tools, tools=None, **thinking, stream=True))
    assert message["reasoning_content"] == whole.message.reasoning_content and message["content"] == ""
    back = [*ASK, {"role": "assistant", "content": "a", "reasoning_content": "b"}, *ASK]
    assert ask(tools, messages=back, **said_text("yes")).choices[0].message.content == "yes"


class Report(BaseModel, extra="forbid"):
    """What a client's class asks for."""

    city: Literal["Kiel", "Bonn"]
    degrees: int = Field(ge=-9, le=9)
    tags: list[Literal["wet", "dry"]] = Field(max_length=3)


def test_a_response_format_is_kept_and_compact_streamed_or_not(tools: Running) -> None:
    answer = tools.client.chat.completions.parse(model="m", messages=ASK, response_format=Report, seed=2)
    report = answer.choices[0].message.parsed
    assert report is not None and answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == report.model_dump_json()
    schema = {"type": "json_schema", "json_schema": {"name": "Report", "schema": Report.model_json_schema()}}
    body: dict[str, Any] = {"tools": None, "response_format": schema, "seed": 2}
    chunks = ask(tools, **body, stream=True)
    assert accumulated(chunk.model_dump() for chunk in chunks)[0]["content"] == report.model_dump_json()
    pattern = {"type": "regex", "pattern": "[a-c]{4}"}
    assert set(ask(tools, tools=None, response_format=pattern).choices[0].message.content) <= {*"abc"}
    anything = ask(tools, tools=None, response_format={"type": "json_object"}, max_tokens=20).choices[0]
    assert anything.message.content.startswith("{")


def test_completions_take_structured_outputs(tools: Running) -> None:
    answer = tools.client.completions.create(
        model="m", prompt=["a", "b"], extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert all(choice.text in ("yes", "no") and choice.finish_reason == "stop" for choice in answer.choices)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "two functions have the name get_weather"),
        ({"tools": [{"type": "web_search"}]}, None, "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "match pattern"),
        ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools.0.function.x", "unrecognized"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": None, "parallel_tool_calls": True}, "parallel_tool_calls", "needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "named: get_weather"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name", "match pattern"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}}, None,
         'Unimplemented keys: ["not"]'),
        ({"response_format": {"type": "regex", "pattern": "(?=a)b"}}, None, "look-around"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "give one of"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs", "not a JSON schema"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "structured_outputs", "one of"),
        ({"guided_json": {}}, "guided_json", "unrecognized"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs", "takes no thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "takes no messages"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported by this model's chat template"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "the content of a user is missing"),
        ({"messages": [*ASK, {"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages", "'x' is not"),
        ({"messages": [*ASK, {"role": "tool", "content": "a"}]}, "messages", "needs a tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages", "belongs to messages of"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function":
          {"name": "stop", "arguments": "[1]"}}]}]}, "messages", "are not a JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(
    tools: Running, change: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "m", "messages": ASK, "max_tokens": 3, "tools": [WEATHER, STOP], **change}
    response = httpx.post(f"{tools.base}/v1/chat/completions", json={k: v for k, v in body.items() if v is not None})
    error = response.json()["error"]
    assert response.status_code == 400 and words in error["message"], error
    assert param in (None, error["param"])
    assert tools.engine.stats.waiting == 0


def test_a_template_without_tools_refuses_them(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="has no place for tools"):
        server.client.chat.completions.create(model="production", messages=ASK, tools=[WEATHER])
    call = {"id": "x", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    messages: list[Any] = [*ASK, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="no place for calls of tools"):
        server.client.chat.completions.create(model="production", messages=messages)


def test_the_list_of_models_says_what_each_can_do(tools: Running, server: Running) -> None:
    cards = [one.client.models.list().data[0].model_dump() for one in (tools, server)]
    assert [(card["tool_calls"], card["reasoning"]) for card in cards] == [("hermes", "<think></think>"), (None, None)]


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", SAID, CALL, CALL[:40], "<tool_", "a", " \n", "\u2603"]), max_size=6
)


@settings(max_examples=80, deadline=None)
@given(pieces=PIECES, data=st.data(), reason=st.sampled_from(["stop", "length"]))
def test_a_stream_is_the_whole_message_however_it_is_cut(pieces: list[str], data: st.DataObject, reason: Any) -> None:
    def form() -> ChatForm:
        return ChatForm(
            "m", "v", ByteTokenizer(), (), has_logprobs=False, call_id_length=24,
            parser=lambda: AnswerParser(MARKS[0], False, FORMS[0], ["get_weather"]),
        )  # fmt: skip

    text = "".join(pieces)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5))), len(text)]
    events = [Event(text[a:b], ()) for a, b in pairwise(cuts)] + [Event("", (), reason)]
    stream = form()
    streamed = accumulated(chunk for event in events if (chunk := stream.chunk(0, event)) is not None)
    choice = form().complete([Completion(text, (), reason)], [0])["choices"][0]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    whole = {"content": message["content"] or "", "reasoning_content": message.get("reasoning_content", "")}
    assert streamed == ({**whole, "tool_calls": calls}, choice["finish_reason"])
