"""Keys: who may ask, for what and how much."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_server import KEY, LIMITED, Running

from lifecycle.core.config import ConfigError
from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.errors import RequestError
from lifecycle.serving.keys import Account, KeyConfig, read_keys
from lifecycle.serving.limits import Bucket

CHAT = "/v1/chat/completions"
BASE: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def ask(server: Running, key: str, model: str, **change: Any) -> httpx.Response:
    headers: Any = {"authorization": f"Bearer {key}".encode()}
    return httpx.post(f"{server.base}{CHAT}", json=BASE | {"model": model} | change, headers=headers, timeout=60)


def test_the_key_is_asked_for_and_never_recorded(locked: Running) -> None:
    def get(key: str | None) -> httpx.Response:
        headers: Any = {} if key is None else {"authorization": f"Bearer {key}".encode()}
        return httpx.get(f"{locked.base}/v1/models", headers=headers)

    assert get(None).status_code == get("wrong").status_code == get(KEY + "x").status_code == 401
    assert get("wrong").json()["error"]["code"] == "invalid_api_key"
    assert [card["id"] for card in get(KEY).json()["data"]] == ["production", "candidate"]
    assert locked.post(CHAT, **BASE, model="production").status_code == 401
    assert [record.status for record in locked.records] == [401]
    assert ask(locked, KEY, "production").status_code == 200
    assert locked.records[-1].key == "all" and "x-ratelimit-limit-requests" not in get(KEY).headers
    assert KEY not in str(locked.records)
    assert httpx.get(f"{locked.base}/health").json() == {"status": "ok"}
    for path in ("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/responses", "/v1/completions", "/tokenize"):
        assert locked.post(path).status_code == 401, path


def test_a_key_may_use_its_models_only(locked: Running) -> None:
    refused = ask(locked, LIMITED, "production")
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert "it may use: candidate" in refused.json()["error"]["message"]
    assert ask(locked, LIMITED, "b" * 64).status_code == 403
    client = openai.OpenAI(base_url=f"{locked.base}/v1", api_key=LIMITED, max_retries=0)
    assert [card.id for card in client.models.list()] == ["candidate"]
    with pytest.raises(openai.PermissionDeniedError):
        client.models.retrieve("production")


def test_a_key_s_limits_are_told_and_kept(locked: Running) -> None:
    """Four requests a minute and 40 tokens: the answer's headers say what is left, and 429 when to come back."""
    first = ask(locked, LIMITED, "candidate")
    used = first.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-requests"] == "4" and first.headers["x-ratelimit-limit-tokens"] == "40"
    assert first.headers["x-ratelimit-remaining-requests"] == "3"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) in range(40 - used, 42 - used)
    assert 0 < float(first.headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 60
    answers = [ask(locked, LIMITED, "candidate", stream=True) for _ in range(4)]
    refused = answers[-1]
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded" and "a minute" in refused.json()["error"]["message"]
    assert ask(locked, KEY, "candidate").status_code == 200
    assert locked.wait_for_record(6).key == "all"


def test_tokens_count_as_they_are_made_and_leave_a_debt() -> None:
    now = [0.0]
    account = Account("a", KeyConfig(env="-", tokens_per_minute=60), lambda: now[0])
    account.begin_request()
    account.use_tokens(100)
    with pytest.raises(RequestError, match="60 tokens a minute") as error:
        account.begin_request()
    assert error.value.headers is not None and error.value.headers["Retry-After"] == "41"
    now[0] = 41.0
    account.begin_request()


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=40))
def test_use_never_exceeds_the_rate_and_one_minute_and_the_last_request(
    rate: int, asked: list[tuple[float, int]]
) -> None:
    now = [0.0]
    bucket, used, largest = Bucket(rate, lambda: now[0]), 0, 0
    for pause_s, number in asked:
        now[0] += pause_s
        if bucket.wait_s == 0:
            bucket.take(number)
            used, largest = used + number, max(largest, number)
        else:
            now[0] += bucket.wait_s + 1e-6
            assert bucket.wait_s == 0 and bucket.left >= 1
        assert used <= rate * (1 + now[0] / 60) + largest + 1e-3
        assert 0 <= bucket.left <= rate and bucket.full_s >= 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: {a: {env: NO_SUCH_KEY}}", "NO_SUCH_KEY"),
        ("keys: {a: {}}", "either sha256"),
        (f"keys: {{a: {{sha256: {'ab' * 32}, env: X}}}}", "either sha256"),
        ("keys: {a: {sha256: secret}}", "sha256"),
        (f"keys: {{a: {{sha256: {'ab' * 32}}}, b: {{sha256: {'ab' * 32}}}}}", "the same key"),
        (f"keys: {{a/b: {{sha256: {'ab' * 32}}}}}", "pattern"),
        (f"keys: {{a: {{sha256: {'ab' * 32}, requests_per_minute: 0}}}}", "requests_per_minute"),
        (f"keys: {{a: {{sha256: {'ab' * 32}, request_per_minute: 1}}}}", "requests_per_minute"),
        ("keys: {}", "keys"),
    ],
)
def test_a_faulty_file_of_keys_is_an_error_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        create_app({}, ServeConfig(keys=file))
    assert "keys.yaml" in str(error.value)


def test_without_keys_all_may_ask() -> None:
    assert read_keys(None).account("").may_use("anything")
