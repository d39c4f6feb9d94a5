"""What HTTP clients, operators and other programs rely on besides OpenAI's shapes."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_server import Running

from lifecycle.core.config import ConfigError
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.schemas import NEUTRAL
from lifecycle.serving.server import listen, url
from lifecycle.testing.waiting import LIMIT_S, wait_until
from tests.engine_turns import held

CHAT = "/v1/chat/completions"
BASE = {"model": "production", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": "x" * 1001}, "stop", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, None),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"five": 1}}, None, "invalid_value"),
        ({"logit_bias": {"-1": 1}}, None, "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"typical_p": 0}, "typical_p", "invalid_value"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"top_k": 2**31}, "top_k", "invalid_value"),
        ({"top_k": 10**30}, "top_k", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens", "invalid_value"),
        ({"user": "x" * 513}, "user", "invalid_value"),
        ({"prompt_cache_key": "a"}, "prompt_cache_key", "unsupported_parameter"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls", "invalid_value"),
        ({"frequency_penalty": False}, "frequency_penalty", "invalid_value"),
        ({"store": 0}, "store", "unsupported_parameter"),
    ],
)
def test_a_bad_field_gives_400_and_is_named(
    server: Running, change: dict[str, object], param: str | None, code: str | None
) -> None:
    body = json.dumps(BASE | change).encode()
    response = httpx.post(f"{server.base}{CHAT}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param is not None:
        assert (error["param"], error["code"]) == (param, code)


def test_tokens_are_those_that_an_answer_continues(server: Running) -> None:
    """Counted as a request's usage counts them, and back."""
    text, chat = {"model": "production", "prompt": "héllo"}, {"model": "production", "messages": BASE["messages"]}
    for own, path in ((text, "/v1/completions"), (chat, CHAT)):
        found = server.post("/tokenize", **own).json()
        usage = server.post(path, **own, max_tokens=1).json()["usage"]
        assert found["count"] == len(found["tokens"]) == usage["prompt_tokens"]
        assert found["max_model_len"] == httpx.get(f"{server.base}/v1/models/production").json()["max_model_len"]
    plain = server.post("/tokenize", **text, add_special_tokens=False).json()["tokens"]
    assert server.post("/detokenize", model="production", tokens=plain).json() == {"prompt": "héllo"}
    closed = server.post("/tokenize", **chat, add_generation_prompt=False).json()["tokens"]
    opened = server.post("/tokenize", **chat).json()["tokens"]
    assert opened[: len(closed)] == closed and len(opened) > len(closed)
    assert "<|im_start|>" in server.post("/detokenize", model="production", tokens=opened).json()["prompt"]


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", 400),
        ("/tokenize", {"prompt": "x" * 100_000}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "model": "gone"}, "model", 404),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs", 400),
        ("/detokenize", {"tokens": [10**6]}, "tokens", 400),
        ("/detokenize", {"tokens": [-1]}, None, 400),
        ("/detokenize", {"tokens": "a"}, "tokens", 400),
    ],
)
def test_a_bad_request_for_tokens_is_named(
    server: Running, path: str, body: dict[str, Any], param: str | None, status: int
) -> None:
    response = server.post(path, **({"model": "production"} | body))
    assert response.status_code == status, response.text
    assert param is None or response.json()["error"]["param"] == param


def test_values_that_ask_for_nothing_are_accepted(server: Running) -> None:
    nothing = {name: values[0] if values else None for name, values in NEUTRAL.items()}
    assert server.post(CHAT, **BASE, **nothing).status_code == 200


def test_bodies_that_are_not_json_or_too_large_are_refused(server: Running) -> None:
    def send(content: bytes, kind: str) -> httpx.Response:
        return httpx.post(f"{server.base}{CHAT}", content=content, headers={"content-type": kind})

    assert send(b'{"model": ', "application/json").status_code == 400
    assert "not valid JSON" in send(b"{", "application/json").json()["error"]["message"]
    assert send(b"[1]", "application/json").status_code == 400
    assert send(b"\xff{}", "application/json").status_code == 400
    assert send(json.dumps(BASE).encode(), "text/plain").status_code == 415
    assert send(b" " * (5 << 20), "application/json").status_code == 413


def test_a_field_given_twice_is_named(server: Running) -> None:
    body = b'{"model": "production", "messages": [{"role": "user", "content": "a", "content": "b"}], "max_tokens": 1}'
    response = httpx.post(f"{server.base}{CHAT}", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "content")


def test_query_parameters_are_refused_by_name(server: Running) -> None:
    for response in (
        httpx.post(f"{server.base}{CHAT}?temperature=0", json=BASE),
        httpx.get(f"{server.base}/v1/models?limit=3"),
    ):
        assert (response.status_code, response.json()["error"]["param"]) in {(400, "temperature"), (400, "limit")}


def test_extreme_values_that_are_valid_are_answered(server: Running) -> None:
    for change in ({"top_k": 2**31 - 1}, {"top_p": 5e-324}, {"min_p": 1}, {"temperature": 1e-300}, {"seed": -(2**63)}):
        response = server.post(CHAT, **BASE | {"temperature": 1} | change)
        assert response.status_code == 200, (change, response.text)
    assert server.engine.is_alive


def test_a_top_p_of_nearly_zero_is_greedy(server: Running) -> None:
    answers = [
        server.post(CHAT, **BASE | change).json() for change in ({"temperature": 0}, {"top_p": 1e-40, "seed": 3})
    ]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]


def test_more_choices_than_the_server_can_hold_are_no_matter_of_waiting(server: Running) -> None:
    prompts = ["a"] * (server.engine.max_requests + 1)
    response = server.post("/v1/completions", model="production", prompt=prompts, max_tokens=1)
    assert response.status_code == 400 and "at most" in response.json()["error"]["message"]


def test_a_text_that_cannot_fit_is_refused_without_tokenizing_it(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("tokenized")

    monkeypatch.setattr(type(server.engine.model.tokenizer), "encode_batch", never)
    long = "a" * (server.engine.max_seq_len * server.engine.model.tokenizer.longest_token + 1)
    for path, body in (("/v1/completions", {"prompt": long}), (CHAT, BASE | {"messages": [_user(long)]})):
        response = server.post(path, **{"model": "production"} | body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "context_length_exceeded"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_version_that_the_list_shows_is_a_name(server: Running) -> None:
    card = server.client.models.list().data[0].model_dump()
    if card["version"]:
        assert server.post(CHAT, **BASE | {"model": card["version"]}).status_code == 200


def test_who_asks_is_recorded(server: Running) -> None:
    count = len(server.records)
    server.post(CHAT, **BASE, user="old name")
    server.post(CHAT, **BASE, user="old name", safety_identifier="new name")
    server.wait_for_record(count + 2)
    assert [record.user for record in server.records[count:]] == ["old name", "new name"]


def _connect(server: Running) -> socket.socket:
    host, _, port = server.base.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def _begin_upload(server: Running) -> socket.socket:
    client = _connect(server)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    client.sendall(head.encode() + b'{"model": ')
    return client


def test_an_upload_that_its_client_aborts_is_a_record_and_no_traceback(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    count = len(server.records)
    _begin_upload(server).close()
    assert server.wait_for_record(count + 1).status == 499
    assert "Traceback" not in caplog.text


def test_an_upload_that_never_ends_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.serving.body.MAX_BODY_S", 0.2)
    count = len(server.records)
    with _begin_upload(server) as client:
        answer = b"".join(iter(lambda: client.recv(4096), b""))  # and the connection is closed
        assert b"408" in answer.splitlines()[0]
    assert server.wait_for_record(count + 1).status == 408


def test_headers_that_never_end_close_the_connection(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.serving.server.MAX_HEADERS_S", 0.1)
    half = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    for begin in (b"", half):
        with _connect(server) as client:
            client.sendall(begin)
            assert client.recv(4096) == b""
    monkeypatch.setattr("lifecycle.serving.server.MAX_HEADERS_S", LIMIT_S)
    with _connect(server) as client:
        client.sendall(half + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr("lifecycle.serving.server.MAX_HEADERS_S", 0.1)
        client.sendall(half)  # of a further request
        while client.recv(4096):
            pass


def test_text_prompts_are_checked(server: Running) -> None:
    for prompt, words in (
        ([], "empty"),
        ([[]], "empty"),
        ([9999], "outside the vocabulary of 261"),
        ([-1], "prompt"),
        ([2**31], "prompt"),
        ([10**4000], "prompt"),
    ):
        response = server.post("/v1/completions", model="production", prompt=prompt)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_openais_error_form(server: Running) -> None:
    assert httpx.get(f"{server.base}/v1/images").json()["error"]["type"] == "not_found_error"
    response = httpx.get(f"{server.base}{CHAT}")
    assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request_error")


def test_a_client_that_goes_away_frees_its_slot(server: Running) -> None:
    """Streaming and not: 4,000 tokens were asked for, and far fewer are made."""
    engine = server.engine
    for stream, read_s in ((True, LIMIT_S), (False, 0.25)):
        before, count = engine.stats.decode_tokens, len(server.records)
        body = BASE | {"max_tokens": 4000, "stream": stream, "temperature": 0}
        timeout = httpx.Timeout(10, read=read_s)
        with held(engine) as turns:
            turns.let(9)  # of 250 that 4,000 tokens take at least
            with (
                pytest.raises(httpx.ReadTimeout),
                httpx.stream("POST", f"{server.base}{CHAT}", json=body, timeout=timeout) as answer,
            ):
                next(answer.iter_text())
                raise httpx.ReadTimeout("enough")
            record = server.wait_for_record(count + 1)
        assert record.status == 499
        wait_until(lambda: engine.stats.active == 0)
        assert server.engine.stats.decode_tokens - before < 3900


def test_two_requests_decode_in_one_batch(server: Running) -> None:
    before = server.engine.stats
    body = BASE | {"max_tokens": 400, "temperature": 0}
    with ThreadPoolExecutor(2) as pool, held(server.engine):
        asked = pool.map(lambda _: server.post(CHAT, **body).json(), range(2))
        wait_until(lambda: server.engine.stats.waiting == 2)
    answers = list(asked)
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    after = server.engine.stats
    assert after.largest_batch == 2
    assert after.decode_steps - before.decode_steps < 0.9 * tokens
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_full_queue_gives_429_and_says_when_to_come_back(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots, and four may wait: while one answer is on its way six choices are too many, and none is left."""
    programs, may_go_on = server.engine._runner._programs, threading.Event()
    decode = programs.decode
    monkeypatch.setattr(programs, "decode", lambda rows: may_go_on.wait(LIMIT_S) and decode(rows))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, CHAT, **BASE)
        try:
            wait_until(lambda: server.engine.stats.active == 1)
            response = server.post(CHAT, **(BASE | {"n": server.engine.max_requests}))
        finally:
            may_go_on.set()
        assert running.result().status_code == 200
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "queue_full"
    assert server.post(CHAT, **BASE).status_code == 200


def test_records_tell_times_tokens_and_texts(server: Running) -> None:
    count = len(server.records)
    answer = server.post(CHAT, **BASE, stream=False).json()
    record = server.wait_for_record(count + 1)
    assert (record.route, record.model, record.version) == (CHAT, "production", "a" * 64)
    assert (record.status, record.finish_reason) == (200, answer["choices"][0]["finish_reason"])
    assert record.id == answer["id"]
    assert record.completion == answer["choices"][0]["message"]["content"]
    assert json.loads(record.prompt) == BASE["messages"]
    assert record.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert record.first_token_s is not None
    assert 0 < record.first_token_s <= record.latency_s < 60
    assert abs(record.time - time.time()) < 60
    assert len(record.generation_ids) == 1
    server.post(CHAT, **BASE, temprature=1)
    refused = server.wait_for_record(count + 2)
    assert (refused.status, refused.completion_tokens, refused.model) == (400, 0, "")


def test_metrics_count_what_was_done_and_have_proper_names(server: Running) -> None:
    def read() -> dict[tuple[str, ...], float]:
        text = httpx.get(f"{server.base}/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        wanted = {"route": CHAT, "model": "production"}
        return {
            (s.name, s.labels.get("status", "")): s.value
            for s in samples
            if all(s.labels.get(k, v) == v for k, v in wanted.items())
        }

    server.post(CHAT, **BASE)
    before = read()
    answer = server.post(CHAT, **BASE).json()
    after = read()
    name = "lifecycle_completion_tokens_total"
    assert after[name, ""] - before[name, ""] == answer["usage"]["completion_tokens"]
    name = "lifecycle_time_to_first_token_seconds_count"
    assert after[name, ""] - before[name, ""] == 1
    assert after["lifecycle_slots", ""] == 2
    assert after["lifecycle_queue_depth", ""] == 0
    assert all(key[0].startswith("lifecycle_") for key in after)


def test_usage_and_metrics_tell_what_was_cached(server: Running) -> None:
    """Also of several prompts and choices, and of a response."""

    def ask(path: str, **own: Any) -> Any:
        return server.post(path, model="production", temperature=0, **own).json()["usage"]

    first, other = "a cached beginning " * 10, "another beginning of it " * 8
    assert ask("/v1/completions", prompt=first, max_tokens=1)["prompt_tokens_details"] == {"cached_tokens": 0}
    again = ask("/v1/completions", prompt=[first + "!", other], n=2, max_tokens=1)
    assert again["prompt_tokens_details"] == {"cached_tokens": 128}
    turns = {"max_output_tokens": 1, "input": "to be said twice " * 12}
    assert [ask("/v1/responses", **turns)["input_tokens_details"]["cached_tokens"] for _ in range(2)] == [0, 128]
    families = text_string_to_metric_families(httpx.get(f"{server.base}/metrics").text)
    samples = [s for family in families for s in family.samples if s.labels.get("model") == "production"]
    assert sum(s.value for s in samples if s.name == "lifecycle_cached_prompt_tokens_total") >= 256
    pages = {s.labels["state"]: s.value for s in samples if s.name == "lifecycle_cache_pages"}
    assert set(pages) == {"free", "cached", "used"} and pages["cached"] > 0 and pages["used"] == 0
    assert all(s.value > 0 for s in samples if s.name == "lifecycle_cache_bytes")


def test_an_error_inside_has_openais_form_and_is_recorded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lifecycle.serving.completing.prepare_chat", fail)
    count = len(server.records)
    response = server.post(CHAT, **BASE)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert server.wait_for_record(count + 1).status == 500


def test_numbers_that_are_not_finite_are_an_error_of_its_own_and_counted(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.inference.slot_requests.is_finite", lambda *_: False)
    answer = server.post(CHAT, **BASE)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "not_finite")
    assert "other requests are not affected" in error["message"]
    last = server.post(CHAT, **BASE, stream=True).text.split("data: ")[-1]
    assert json.loads(last)["error"] == error
    samples = [
        sample
        for family in text_string_to_metric_families(httpx.get(f"{server.base}/metrics").text)
        for sample in family.samples
        if sample.name == "lifecycle_not_finite_total"
    ]
    assert [sample.value for sample in samples if sample.labels["model"] == "production"] == [2]


@pytest.mark.slow
def test_a_name_moves_to_another_version_between_requests(server: Running) -> None:
    before = server.models["production"]
    server.models["production"] = server.models["candidate"]
    assert server.post(CHAT, **BASE).json()["system_fingerprint"] == "b" * 64
    server.models["production"] = before
    assert server.post(CHAT, **BASE).json()["system_fingerprint"] == "a" * 64


def test_a_port_in_use_is_named_with_the_option_that_changes_it(server: Running) -> None:
    port = int(server.base.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=rf"port {port} is in use on 127\.0\.0\.1.*serve\.port="):
        listen(ServeConfig(port=port))
    with pytest.raises(ConfigError, match=r"serve\.host=192\.0\.2\.1"):
        listen(ServeConfig(host="192.0.2.1", port=0))
    with listen(ServeConfig(port=0)) as listener:
        assert url(listener).startswith("http://127.0.0.1:")


def test_streams_of_many_clients_do_not_mix(server: Running) -> None:
    """Six at once over two slots: each stream is its own answer."""
    prompts = [f"number {i}" for i in range(6)]
    ask: dict[str, Any] = {"model": "production", "temperature": 0, "max_tokens": 30}
    expected = [server.client.completions.create(**ask, prompt=p).choices[0].text for p in prompts]
    found = [""] * 6

    def read(i: int) -> None:
        for chunk in server.client.completions.create(**ask, prompt=prompts[i], stream=True):
            found[i] += chunk.choices[0].text

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
