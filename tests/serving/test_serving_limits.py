"""What holds for every route that makes the engine work: a full queue, time, clients that leave, an engine's error."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from serving_server import Running, running, start

from lifecycle.inference.model import Model
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.testing.waiting import LIMIT_S, wait_until
from tests.engine_turns import held

ENDLESS: dict[str, Any] = {"model": "production", "prompt": "a", "max_tokens": 4000, "temperature": 0}
WORK: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/embeddings": {"input": ["a", "b", "c"]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
}
STREAMED = ("/v1/completions", "/v1/chat/completions", "/v1/responses")


@pytest.mark.parametrize("path", WORK)
def test_a_full_server_gives_429_and_says_when_to_come_back(server: Running, path: str) -> None:
    engine = server.engine
    with ThreadPoolExecutor(1) as pool, held(engine):
        filling = pool.submit(
            server.post, "/v1/completions", model="production", prompt=["a"] * engine.max_requests, max_tokens=1
        )
        wait_until(lambda: engine.stats.active + engine.stats.waiting == engine.max_requests)
        response = server.post(path, model="production", **WORK[path])
    assert filling.result().status_code == 200
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["error"]["code"] == "queue_full"
    assert server.post(path, model="production", **WORK[path]).status_code == 200


def test_too_many_uploads_give_429(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.serving.desk.MAX_ARRIVING", -1000)
    count = len(server.records)
    response = server.post("/v1/embeddings", model="production", input="a")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert server.wait_for_record(count + 1).status == 429


@pytest.fixture(scope="module")
def hasty(server: Running) -> Iterator[Running]:
    """The same engines, with a tenth of a second for each request."""
    own = Running("", server.engine, server.models)
    for base in start(server.models, ServeConfig(port=0, max_request_s=0.1), own.records):
        own.base = base
        yield own


@pytest.mark.parametrize("path", WORK)
def test_an_answer_that_takes_too_long_ends_with_504(hasty: Running, path: str) -> None:
    before = len(hasty.records)
    with held(hasty.engine):
        response = hasty.post(path, model="production", **WORK[path])
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert response.headers["x-should-retry"] == "false" and "0.1 seconds" in response.text
        if path in STREAMED:
            lines = hasty.post(path, model="production", **WORK[path], stream=True).text.split("\n\n")
            last = json.loads([line for line in lines if line][-1].split("data: ", 1)[1])
            assert "0.1 seconds" in json.dumps(last) and "timeout" in json.dumps(last)
    wait_until(lambda: hasty.engine.stats.active == hasty.engine.stats.waiting == 0)
    assert [record.status for record in hasty.records[before:]] == [504] * (2 if path in STREAMED else 1)


def test_a_stream_s_end_by_time_is_an_error_of_the_client(hasty: Running) -> None:
    """Half of the answer has come; its slot is free."""
    client = openai.OpenAI(base_url=f"{hasty.base}/v1", api_key="unused", max_retries=0)
    text = ""
    with pytest.raises(openai.APIError, match=r"after 0\.1 seconds"):
        for _ in range(20):  # a fast machine makes 4,000 tokens in less
            for chunk in client.completions.create(**ENDLESS, stream=True):
                text += chunk.choices[0].text
    wait_until(lambda: hasty.engine.stats.active == 0)


def test_a_cancelled_request_holds_its_slot_for_no_further_dispatch(model: Model) -> None:
    """Whether it decodes, is in the middle of its prompt, or waits: the next turn has removed it before it computes."""
    params = SamplingParams(temperature=0.0, max_tokens=1000, stop_ids=())
    runner = Runner(model, num_slots=2, max_queue=4)
    decoding, long, waiting = (runner.submit(prompt, params) for prompt in ([65], [66] * 2000, [67]))
    runner.turn()
    assert runner.stats.active == 2 and runner.stats.waiting == 1
    made = runner.stats
    for generation in (decoding, long, waiting):
        generation.cancel()
    runner.turn()
    assert runner.stats.active == runner.stats.waiting == 0
    assert (runner.stats.decode_steps, runner.stats.prefill_tokens) == (made.decode_steps, made.prefill_tokens)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_costs_two_turns_at_most(
    server: Running, monkeypatch: pytest.MonkeyPatch, is_stream: bool
) -> None:
    """Counted from the moment at which the server cancels: one turn may be under way, and the next one removes it."""
    runner, turns, since = server.engine._runner, [0], list[int]()
    turn, cancel = runner.turn, type(server.engine.submit([65], SamplingParams(max_tokens=1))).cancel

    def counted() -> None:
        turns[0] += 1
        turn()

    def cancelled(generation: Any) -> None:
        if not generation.is_cancelled:
            since.append(turns[0])
        cancel(generation)

    wait_until(lambda: server.engine.stats.active == 0)
    monkeypatch.setattr(runner, "turn", counted)
    monkeypatch.setattr("lifecycle.inference.generation.Generation.cancel", cancelled)
    with pytest.raises(httpx.ReadTimeout):
        timeout = httpx.Timeout(LIMIT_S, read=0.3)
        with httpx.stream(
            "POST", f"{server.base}/v1/completions", json=ENDLESS | {"stream": is_stream}, timeout=timeout
        ) as response:
            next(response.iter_text())
            raise httpx.ReadTimeout("enough")
    wait_until(lambda: bool(since) and server.engine.stats.active == 0)
    assert turns[0] - since[0] <= 2


def test_a_broken_engine_gives_503_on_every_route(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine, "_is_broken", True)
    for path, body in WORK.items():
        response = server.post(path, model="production", **body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable"), path
    with running(create_app(server.models, ServeConfig(port=0)), ServeConfig(port=0)) as base:
        assert httpx.get(f"{base}/health").status_code == 503
