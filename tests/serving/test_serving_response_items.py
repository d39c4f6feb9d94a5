"""Tools, thoughts and the form of the answer of `/v1/responses`, through OpenAI's own client."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from serving_server import Running, start
from test_serving_tools import CALL, TEMPLATE, WEATHER

from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Event, Generation, Token
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.response_answers import OutputItems
from lifecycle.serving.response_schemas import ResponseRequest, messages_of
from lifecycle.testing.models import SERVED, random_model
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.parts import Part

FUNCTION: Any = {"type": "function", **WEATHER["function"], "strict": True}
ASK: dict[str, Any] = {"model": "m", "input": "How is it in Kiel?", "tools": [FUNCTION]}
SAID = f"<think>\nWhere?</think>\n\nSo.\n{CALL}"
ARGUMENTS = '{"city": "Kiel", "days": 3}'


def answered(running: Running, ask: dict[str, Any] = ASK, **changes: Any) -> Any:
    """The whole answer. Through `Any`: a type checker takes seconds for each call whose keywords it does not know."""
    create: Any = running.client.responses.create
    return create(**ask | changes)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Without thoughts that it opens itself."""
    model = random_model(5, "d" * 64, SamplingParams(stop_ids=()), **SERVED)
    model = replace(model, template=ChatTemplate(model.tokenizer, TEMPLATE))
    plain = replace(
        model, template=ChatTemplate(model.tokenizer, TEMPLATE.partition("{% if enable_")[0] + "{% endif %}")
    )
    with Engine(model, num_slots=2, max_queue=4) as engine, Engine(plain, num_slots=2, max_queue=4) as other:
        for base in start({"m": Served(engine), "plain": Served(other)}, ServeConfig(port=0), records := []):
            yield Running(base, engine, {}, records)


@pytest.fixture
def says(running: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Lets the model say a text, in pieces of 7 characters; returns the prompts that it gets."""

    def scripted(text: str, reason: Any = "stop") -> list[list[int]]:
        prompts: list[list[int]] = []

        def submit(
            prompt: Sequence[int], params: SamplingParams, adapter: None = None, prediction: Sequence[int] = ()
        ) -> Generation:
            generation = Generation(prompt, params, len(text))
            prompts.append([*prompt])
            for begin in range(0, len(text), 7):
                generation.put(Event(text[begin : begin + 7], (Token(65, -1.0),)))
            generation.put(Event("", (Token(0, -1.0),), reason))
            return generation

        monkeypatch.setattr(running.engine, "submit", submit)
        return prompts

    return scripted


def plain_items(items: Any) -> list[dict[str, Any]]:
    """Without what is drawn anew in each answer, and what the client makes of it."""
    plain = [{k: v for k, v in item.to_dict().items() if k not in ("id", "call_id")} for item in items]
    for part in (part for item in plain for part in item.get("content", ())):
        part.pop("parsed", None)
    return plain


def test_thoughts_text_and_calls_are_items_streamed_or_not(running: Running, says: Any) -> None:
    says(SAID)
    whole = answered(running, parallel_tool_calls=True)
    assert plain_items(whole.output) == [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Where?"}],
         "status": "completed"},
        {"type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "So.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "name": "get_weather", "arguments": ARGUMENTS, "status": "completed"},
    ]  # fmt: skip
    assert whole.status == "completed" and whole.output_text == "So." and whole.tools[0].to_dict() == FUNCTION
    assert whole.usage is not None and whole.usage.output_tokens_details.reasoning_tokens == len("Where?")
    with running.client.responses.stream(**ASK) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert plain_items(final.output) == [*plain_items(whole.output)[:2], plain_items(whole.output)[2] | {
        "parsed_arguments": {"city": "Kiel", "days": 3}}]  # fmt: skip
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == ARGUMENTS and len(deltas) > 1


def test_the_items_are_sent_back_with_the_results_of_the_calls(running: Running, says: Any) -> None:
    prompts = says(SAID)
    first = answered(running)
    call = next(item for item in first.output if item.type == "function_call")
    given: list[Any] = [{"role": "user", "content": "How is it in Kiel?"}, *first.output]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    again = answered(running, input=given)
    assert again.status == "completed"
    text = running.engine.model.tokenizer.decode(prompts[1], skip_special=False)
    assert "get_weather: rain" in text and "assistant\nSo." in text
    assert f'<tool_call>{{"name": "get_weather", "arguments": {ARGUMENTS}}}</tool_call>' in text
    chat = ResponseRequest.model_validate_json(json.dumps({"model": "m", "input": [
        item if isinstance(item, dict) else item.to_dict() for item in given]})).chat  # fmt: skip
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.messages[1].reasoning_content == "Where?" and chat.messages[1].tool_calls is not None


def test_what_is_cut_is_incomplete_and_can_be_sent_back(running: Running, says: Any) -> None:
    says("<think>\nWhe", "length")
    cut = answered(running)
    assert cut.status == "incomplete" and [(item.type, item.status) for item in cut.output] == [
        ("reasoning", "incomplete")
    ]
    given: list[Any] = [*cut.output, {"role": "user", "content": "and?"}]
    answered(running, input=given)
    says("")
    empty = answered(running)
    assert [item.type for item in empty.output] == ["message"] and empty.output_text == ""


class Weather(BaseModel):
    city: Literal["Kiel", "Bonn"]
    days: int = Field(ge=1, le=9)


def test_the_client_parses_a_schema_and_calls_of_a_real_model(running: Running) -> None:
    ask: dict[str, Any] = {"model": "plain", "input": "Kiel?", "temperature": 1, "max_output_tokens": 200}
    answer = running.client.responses.parse(**ask, text_format=Weather)
    assert isinstance(answer.output_parsed, Weather) and answer.status == "completed"
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "json_schema"
    with running.client.responses.stream(**ask, text_format=Weather) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Weather)
    for choice in ("required", {"type": "function", "name": "Weather"}):
        tool: Any = openai.pydantic_function_tool(Weather)["function"]
        own: dict[str, Any] = {"tools": [{"type": "function", **tool}], "tool_choice": choice}
        called = running.client.responses.parse(**ask, **own, parallel_tool_calls=False)
        (item,) = called.output
        assert item.type == "function_call" and Weather.model_validate(
            item.parsed_arguments or json.loads(item.arguments)
        )
    some = answered(running, ask, text={"format": {"type": "json_object"}})
    assert some.output_text.startswith("{")


TURNS = st.lists(st.sampled_from(["reasoning", "message", "function_call", "user"]), max_size=12)


@given(TURNS)
def test_a_turn_is_one_message_and_nothing_is_lost(kinds: list[str]) -> None:
    make: dict[str, Any] = {
        "reasoning": lambda n: {"type": "reasoning", "content": [{"type": "reasoning_text", "text": f"r{n} "}]},
        "message": lambda n: {"role": "assistant", "content": f"m{n} "},
        "function_call": lambda n: {"type": "function_call", "call_id": f"c{n} ", "name": "f", "arguments": "{}"},
        "user": lambda n: {"role": "user", "content": f"u{n} "},
    }
    body = {"model": "m", "input": [make[kind](number) for number, kind in enumerate(kinds)] or "a"}
    asked = ResponseRequest.model_validate_json(json.dumps(body))
    if isinstance(asked.input, str):
        return
    said = ""
    for message in messages_of(asked.input):
        calls = "".join(call.id for call in message.tool_calls or ())
        said += f"{message.reasoning_content or ''}{message.content or ''}{calls}"
    assert said.split() == [f"{kind[0] if kind != 'function_call' else 'c'}{n}" for n, kind in enumerate(kinds)]


def test_parts_make_the_same_items_however_they_are_cut() -> None:
    def items(parts: list[Part]) -> list[Any]:
        output = OutputItems(9)
        events = [*output.add(parts), *output.finish(is_cut=False)]
        assert events[-1][0] == "output_item.done"
        return [item.model_dump(exclude={"id", "call_id"}) for item in output.items]

    parts = [Part("thought", "ab"), Part("text", "cd"), Part("call", "", 0, "f"), Part("call", "{}", 0),
             Part("call", "", 1, "f"), Part("call", "[]", 1), Part("text", "e")]  # fmt: skip
    cut = [replace(part, text=text, name=part.name) for part in parts for text in part.text or [""]]
    assert items(parts) == items(cut) and [item["type"] for item in items(parts)] == [
        "reasoning", "message", "function_call", "function_call", "message",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "none"}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [["x"]]}, "input.0"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [None]}, "input.0"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]}, "input"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "encrypted_content"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}, "tools": []},
            "text.format",
        ),
        ({"reasoning": {"summary": "auto"}}, "summary"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_own_name(running: Running, change: Any, param: str | None) -> None:
    answer = running.post("/v1/responses", **ASK | change)
    assert answer.status_code == 400 and (param is None or answer.json()["error"]["param"] == param), answer.text
