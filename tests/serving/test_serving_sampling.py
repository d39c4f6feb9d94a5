"""Bad words, minimal lengths, `best_of` and predictions through OpenAI's own client."""

from typing import Any

import openai
import pytest
from serving_server import Running

from lifecycle.inference.generation import Completion, Token
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.chat_schemas import ChatRequest
from lifecycle.serving.choices import best
from lifecycle.serving.schemas import CompletionRequest

ASK: dict[str, Any] = {"model": "production", "prompt": "ab", "temperature": 0, "max_tokens": 24}
CHAT: dict[str, Any] = {"model": "production", "messages": [{"role": "user", "content": "ab"}], "max_tokens": 24}


def test_bad_words_are_in_no_answer_however_they_are_given(server: Running) -> None:
    create = server.client.completions.create
    text, word = create(**ASK).choices[0].text, "|}"
    before = text.index(word) + 1
    for own in ({"bad_words": [word]}, {"bad_words_ids": [[*word.encode()]]}):
        answer = create(**ASK, extra_body=own).choices[0].text
        assert word not in answer and answer[:before] == text[:before]
        chat = server.client.chat.completions.create(**CHAT, logit_bias={"124": 50, "125": 50}, extra_body=own)
        assert word not in (chat.choices[0].message.content or "")
    chunks = create(**ASK, extra_body={"bad_words": [word]}, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in chunks)
    assert streamed == create(**ASK, extra_body={"bad_words": [word]}).choices[0].text


def test_a_minimal_length_comes_before_a_stop(server: Running) -> None:
    text = server.client.completions.create(**ASK).choices[0].text
    begin = text.index("|}|}")
    for minimum, expected in ((0, text[:begin]), (8, text[: begin + 2])):  # of 8 tokens, two are bytes of a character
        answer = server.client.completions.create(**ASK, stop="|", extra_body={"min_tokens": minimum})
        assert answer.choices[0].text == expected and answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_prediction_changes_no_answer_and_usage_says_what_was_right(server: Running, in_parts: bool) -> None:
    letters = {str(letter): 50 for letter in b"abcdefgh"}  # so that the answer's text has its tokens again
    ask: dict[str, Any] = CHAT | {"temperature": 0, "model": "candidate", "n": 2, "logit_bias": letters}
    create = server.client.chat.completions.create
    plain = create(**ask)
    text = plain.choices[0].message.content or ""
    parts = [{"type": "text", "text": part} for part in (text[:5], text[5:] + "~~")]
    prediction: Any = {"type": "content", "content": parts if in_parts else text + "~~"}
    answer = create(**ask, prediction=prediction)
    assert answer.choices == plain.choices
    *_, last = create(**ask, prediction=prediction, stream=True, stream_options={"include_usage": True})
    assert plain.usage is not None and answer.usage is not None and last.usage == answer.usage
    assert answer.usage.completion_tokens == plain.usage.completion_tokens
    assert plain.usage.completion_tokens_details is None
    details = answer.usage.completion_tokens_details
    assert details is not None and len(text) == 24
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (2 * 24, 2 * 2)


def test_a_prediction_is_refused_where_nothing_is_looked_up(server: Running) -> None:
    prediction: Any = {"type": "content", "content": "ab"}
    with pytest.raises(openai.BadRequestError, match=r"prediction: .* serve.speculation.method=ngram") as refused:
        server.client.chat.completions.create(**CHAT, prediction=prediction)
    assert refused.value.param == "prediction"
    too_long = {"type": "content", "content": "a" * 500_000}
    for wrong in (too_long, {"type": "content"}, {"type": "text", "content": "a"}, {"type": "content", "content": []}):
        ask: dict[str, Any] = CHAT | {"model": "candidate", "prediction": wrong}
        with pytest.raises(openai.BadRequestError) as refused:
            server.client.chat.completions.create(**ask)
        assert (refused.value.param or "").startswith("prediction")


def test_settings_of_a_request_become_those_of_the_engine() -> None:
    body = {"model": "m", "prompt": "a", "bad_words": ["b"], "bad_words_ids": [[1, 2]], "min_tokens": 3}
    params = CompletionRequest(**body, ignore_eos=True).sampling(SamplingParams(), 0)
    assert (params.bad_words, params.bad_words_ids, params.min_tokens) == (("b",), ((1, 2),), 3)
    assert params.stop_ids == () and params == SamplingParams.model_validate(params.model_dump())
    assert ChatRequest(model="m", messages=CHAT["messages"]).sampling(SamplingParams(), 0).stop_ids is None


def test_the_best_of_several_are_those_with_the_highest_log_probability_per_token(server: Running) -> None:
    ask: dict[str, Any] = {"model": "production", "seed": 3, "logprobs": 0, "max_tokens": 7}
    every = server.client.completions.create(**ask, prompt=["ab", "cd"], n=3)
    assert every.usage is not None
    answer = server.client.completions.create(**ask, prompt=["ab", "cd"], best_of=3, n=2, echo=True)
    expected, orders = [], []
    for prompt, own in (("ab", every.choices[:3]), ("cd", every.choices[3:])):
        scores = [_mean(choice.logprobs) for choice in own]
        order = sorted(range(3), key=lambda i: -scores[i])
        expected += [prompt + own[i].text for i in order[:2]]
        orders.append(order[:2])
    assert [choice.text for choice in answer.choices] == expected
    assert orders != [[0, 1]] * 2, "another seed, so that they are not the first ones"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == every.usage.completion_tokens == 42
    assert answer.usage.prompt_tokens == every.usage.prompt_tokens
    record = server.wait_for_record(len(server.records))
    assert record.completion == expected[0].removeprefix("ab")


def _mean(logprobs: Any) -> float:
    return sum(logprobs.token_logprobs) / len(logprobs.token_logprobs)


def test_of_equal_ones_the_first_is_the_best_and_all_keep_their_order() -> None:
    def made(*logprobs: float) -> Completion:
        return Completion("", tuple(Token(1, logprob) for logprob in logprobs), "length")

    every = [made(-1.0), made(-2.0, -0.5, -0.5), made(-1.0), made(-0.5), made(-9.0), made(-0.1, -0.2)]
    assert best(every, 3, 1) == [0, 5] and best(every, 3, 2) == [0, 1, 5, 3] and best(every, 3, 3) == [*range(6)]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"bad_words": ["this has more than sixteen bytes"]}, "bad_words"),
        ({"bad_words": ["a"] * 65}, "bad_words"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"bad_words": "a"}, "bad_words"),
        ({"bad_words_ids": [[]]}, "bad_words_ids.0"),
        ({"bad_words_ids": [[9999]]}, "bad_words_ids"),
        ({"min_tokens": 25}, "min_tokens"),
        ({"min_tokens": 1, "structured_outputs": {"regex": "a"}}, "min_tokens"),
        ({"bad_words": ["a"], "structured_outputs": {"regex": "aa"}}, None),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Running, change: dict[str, Any], param: str | None) -> None:
    answer = server.post("/v1/completions", **ASK | change)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_chat_has_no_best_of(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        server.client.chat.completions.create(**CHAT, extra_body={"best_of": 2})
    assert error.value.param == "best_of"
