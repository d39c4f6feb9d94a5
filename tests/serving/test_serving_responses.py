"""`/v1/responses` through OpenAI's own client."""

from typing import Any

import openai
import pytest
from serving_server import Running

from lifecycle.serving.response_answers import ResponseAnswer
from lifecycle.serving.response_schemas import NEUTRAL

ASK: dict[str, Any] = {"model": "production", "temperature": 0, "max_output_tokens": 40}
TURNS: list[Any] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "input_text", "text": "Hello "}, {"type": "input_text", "text": "\u2603"}]},
]
CHAT: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Hello \u2603"}]


def chat(server: Running, **change: Any) -> Any:
    ask: dict[str, Any] = {"model": "production", "messages": CHAT, "temperature": 0, "max_tokens": 40} | change
    return server.client.chat.completions.create(**ask)


def test_a_response_says_what_the_chat_says(server: Running) -> None:
    expected = chat(server)
    every: list[dict[str, Any]] = [{"input": TURNS}, {"input": "Hello \u2603", "instructions": "be brief"}]
    for own in every:
        answer = server.client.responses.create(**ASK, **own)
        assert answer.output_text == expected.choices[0].message.content
        assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
            "incomplete",
            "max_output_tokens",
        )
        assert answer.usage is not None and expected.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (expected.usage.prompt_tokens, 40)
        assert answer.usage.total_tokens == expected.usage.total_tokens
        assert (answer.temperature, answer.max_output_tokens, answer.model) == (0, 40, "production")
        assert answer.instructions == own.get("instructions")


def test_the_events_of_a_stream_add_up_to_the_answer(server: Running) -> None:
    whole = server.client.responses.create(**ASK, input=TURNS)
    events = list(server.client.responses.create(**ASK, input=TURNS, stream=True))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 10
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.incomplete" and deltas == last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage and whole.usage is not None


def test_the_client_s_own_accumulation_works(server: Running) -> None:
    with server.client.responses.stream(**ASK, input=TURNS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    assert snapshots[-1] == server.client.responses.create(**ASK, input=TURNS).output_text


def test_an_answer_is_sent_back_as_it_came(server: Running) -> None:
    first = server.client.responses.create(**ASK, input=TURNS)
    again = server.client.responses.create(**ASK, input=[*TURNS, *first.output, {"role": "user", "content": "and?"}])
    messages = [*CHAT, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "and?"}]
    assert again.output_text == chat(server, messages=messages).choices[0].message.content


def test_requests_and_records_are_those_of_a_chat(server: Running) -> None:
    count = len(server.records)
    answer = server.client.responses.create(**ASK, input="a", safety_identifier="who", store=False)
    record = server.wait_for_record(count + 1)
    assert (record.id, record.user, record.route, record.status) == (answer.id, "who", "/v1/responses", 200)
    assert record.completion == answer.output_text and record.completion_tokens == 40
    neutral = {name: values[0] if values else None for name, values in NEUTRAL.items()}
    plain = server.post("/v1/responses", **ASK, **neutral, input="a").json()
    ResponseAnswer.model_validate(plain, strict=True)
    assert plain["output"][0]["content"][0]["text"] == answer.output_text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, None),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, None),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server: Running, change: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        server.client.post("/responses", body={**ASK, "input": "a"} | change, cast_to=object)
    assert param is None or error.value.param == param
