"""The API through OpenAI's own Python client."""

from typing import Any

import openai
import pytest
from serving_server import Running

from lifecycle.inference.generate import generate
from lifecycle.inference.generation import Generation, Token
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.answers import Echo

HELLO: list[Any] = [{"role": "user", "content": "Hello \u2603"}]


def test_models_are_listed_with_their_versions(server: Running) -> None:
    cards = {card.id: card for card in server.client.models.list()}
    assert set(cards) == {"production", "candidate"}
    assert cards["production"].created == 1_700_000_000
    assert cards["candidate"].model_dump()["version"] == "b" * 64
    assert server.client.models.retrieve("production").id == "production"


def test_a_chat_equals_the_engine_on_the_rendered_prompt(server: Running, model: Model) -> None:
    answer = server.client.chat.completions.create(model="production", messages=HELLO, temperature=0, max_tokens=9)
    prompt = model.template.render(HELLO, add_generation_prompt=True).ids
    expected = generate(model, [prompt], SamplingParams(temperature=0, max_tokens=9), 2)[0]
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.system_fingerprint == "a" * 64
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 9)


def test_an_answers_message_can_be_sent_back_as_it_came(server: Running) -> None:
    ask = server.client.chat.completions.create
    first = ask(model="production", messages=HELLO, max_tokens=2).choices[0].message
    messages: list[Any] = [*HELLO, first, {"role": "user", "content": "and?"}]
    assert ask(model="production", messages=messages, max_tokens=2).choices[0].finish_reason


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_streamed_chat_says_the_same_as_a_whole_one(server: Running, limit: str) -> None:
    ask: dict[str, Any] = {"model": "production", "messages": HELLO, "seed": 5, limit: 60}
    whole = server.client.chat.completions.create(**ask)
    chunks = list(server.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert len(chunks) > 4


def test_without_stream_options_no_chunk_tells_the_usage(server: Running) -> None:
    with server.client.chat.completions.with_streaming_response.create(
        model="production", messages=HELLO, max_tokens=3, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert not any('"usage"' in line for line in lines)


def test_the_seed_decides_and_choices_differ(server: Running) -> None:
    def ask(seed: int, n: int) -> list[str | None]:
        answer = server.client.chat.completions.create(
            model="production", messages=HELLO, seed=seed, n=n, max_tokens=20, top_p=0.95
        )
        return [choice.message.content for choice in answer.choices]

    three = ask(1, 3)
    assert len(set(three)) == 3
    assert ask(1, 1) == three[:1]
    assert ask(2, 1) == three[1:2]  # choice i has the seed plus i


def test_n_choices_are_streamed_with_their_numbers(server: Running) -> None:
    texts = {0: "", 1: "", 2: ""}
    stream = server.client.chat.completions.create(
        model="production", messages=HELLO, n=3, seed=1, max_tokens=20, top_p=0.95, stream=True
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    whole = server.client.chat.completions.create(
        model="production", messages=HELLO, n=3, seed=1, max_tokens=20, top_p=0.95
    )
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]


def test_text_completions_of_several_prompts_and_of_token_ids(server: Running) -> None:
    ask: dict[str, Any] = {"model": "candidate", "temperature": 0, "max_tokens": 6}
    several = server.client.completions.create(**ask, prompt=["ab", "cde"])
    single = [server.client.completions.create(**ask, prompt=p).choices[0].text for p in ("ab", "cde")]
    assert [c.text for c in several.choices] == single
    assert [c.index for c in several.choices] == [0, 1]
    bos = server.engine.model.tokenizer.bos_id
    by_ids = server.client.completions.create(**ask, prompt=[bos, *b"ab"])
    assert by_ids.choices[0].text == single[0]
    assert several.usage is not None
    assert several.usage.prompt_tokens == 7
    assert several.system_fingerprint == "b" * 64


def test_a_stop_string_is_neither_in_the_whole_nor_in_the_stream(server: Running) -> None:
    ask: dict[str, Any] = {"model": "production", "prompt": "ab", "temperature": 0, "max_tokens": 40}
    text = server.client.completions.create(**ask).choices[0].text
    stop = text[10:12]
    cut = text[: text.index(stop)]
    answer = server.client.completions.create(**ask, stop=[stop, "\0never"]).choices[0]
    assert (answer.text, answer.finish_reason) == (cut, "stop")
    pieces = [chunk.choices[0].text for chunk in server.client.completions.create(**ask, stop=stop, stream=True)]
    assert "".join(pieces) == cut


def test_chat_logprobs_name_tokens_bytes_and_alternatives(server: Running) -> None:
    answer = server.client.chat.completions.create(
        model="production", messages=HELLO, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert bytes(token.bytes or []).decode(errors="replace") == token.token


def test_text_logprobs_line_up_with_the_tokens_streamed_or_not(server: Running) -> None:
    ask: dict[str, Any] = {"model": "production", "prompt": "ab", "temperature": 0, "max_tokens": 30, "logprobs": 2}
    whole = server.client.completions.create(**ask).choices[0].logprobs
    assert whole is not None
    assert whole.tokens is not None
    assert whole.text_offset is not None
    assert len(whole.tokens) == 30 == len(whole.top_logprobs or [])
    assert whole.text_offset[:2] == [0, len(whole.tokens[0])]
    parts = [chunk.choices[0].logprobs for chunk in server.client.completions.create(**ask, stream=True)]
    assert [offset for part in parts if part for offset in part.text_offset or []] == whole.text_offset
    assert [value for part in parts if part for value in part.token_logprobs or []] == whole.token_logprobs


def test_an_echo_has_the_prompt_and_its_log_probabilities(server: Running) -> None:
    """As lm-evaluation-harness scores a continuation: token ids, one token more, which it drops."""
    ids = list(b"abcabd")
    ask: dict[str, Any] = {"model": "production", "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    answer = server.client.completions.create(prompt=[ids, ids[:3]], n=2, **ask)
    assert [
        choice.text[: len(text)] for choice, text in zip(answer.choices, ("abcabd",) * 2 + ("abc",) * 2, strict=True)
    ]
    one, two, short = (answer.choices[index].logprobs for index in (0, 1, 2))
    assert one is not None and short is not None and one == two
    assert one.tokens and [*"abcabd"] == one.tokens[:6] and len(one.tokens) == 7
    assert one.token_logprobs and one.token_logprobs[0] is None and all(p < 0 for p in one.token_logprobs[1:])
    assert one.top_logprobs and one.top_logprobs[0] is None and one.text_offset == [*range(7)]
    for token, top in list(zip(one.token_logprobs, one.top_logprobs, strict=True))[1:]:
        assert max(top.values()) >= token
    assert short.token_logprobs and short.token_logprobs[1:3] == pytest.approx(one.token_logprobs[1:3], abs=1e-5)
    # the same token after the same tokens, once generated and once in the prompt
    longer = server.client.completions.create(prompt=[*ids, *one.tokens[6].encode()], **ask).choices[0].logprobs
    assert longer is not None and longer.token_logprobs
    assert longer.token_logprobs[6] == pytest.approx(one.token_logprobs[6], abs=1e-5)


def test_an_echo_leaves_out_what_begins_every_context() -> None:
    """With BOS before the prompt, its first token has a log-probability; what was not scored has none."""
    generation = Generation([1, 65, 66], SamplingParams(), 1)
    generation.prompt_tokens = [Token(65, -1.0), Token(66, -2.0)]
    assert Echo("AB", [65, 66], generation).tokens() == [(65, Token(65, -1.0)), (66, Token(66, -2.0))]
    assert Echo("AB", [1, 65, 66], generation).tokens()[0] == (1, None)
    assert Echo("AB", [65, 66], Generation([1, 65, 66], SamplingParams(), 1)).tokens() == [(65, None), (66, None)]
    assert Echo("", [], generation).tokens() == []


def test_an_echo_of_a_text_streams_first_and_needs_no_log_probabilities(server: Running) -> None:
    ask: dict[str, Any] = {"model": "production", "prompt": "ab", "temperature": 0, "max_tokens": 5, "echo": True}
    whole = server.client.completions.create(**ask).choices[0]
    without: dict[str, Any] = ask | {"echo": False}
    plain = server.client.completions.create(**without).choices[0]
    assert whole.text == "ab" + plain.text and whole.logprobs is None
    chunks = [chunk.choices[0] for chunk in server.client.completions.create(**ask, logprobs=0, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text and chunks[0].text.startswith("ab")
    names = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens or []]
    assert names[:2] == ["a", "b"] and len(names) == 7


def test_errors_arrive_as_the_clients_exceptions(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="'gone' does not exist; served here: production, candidate"):
        server.client.chat.completions.create(model="gone", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as error:
        server.client.completions.create(model="production", prompt="x" * 4000, max_tokens=200)
    assert error.value.code == "context_length_exceeded"
    assert "4096 tokens, but 4201 were asked for (4001 in the prompt, 200 to generate)" in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        server.client.chat.completions.create(model="production", messages=HELLO, reasoning_effort="low")
    assert error.value.param == "reasoning_effort"


def test_penalties_and_biases_of_the_client_change_the_answer(server: Running) -> None:
    ask: dict[str, Any] = {"model": "production", "prompt": "ab", "temperature": 0, "max_tokens": 30}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"presence_penalty": 2, "frequency_penalty": 2},
        {"logit_bias": {"65": 100}},
    )
    plain, varied, certain = (server.client.completions.create(**ask, **own).choices[0].text for own in changes)
    assert len(set(varied)) > len(set(plain)) and certain == "A" * 30
