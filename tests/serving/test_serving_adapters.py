"""Adapters as models: asked for by name, loaded and unloaded over HTTP by keys that may, from folders that may."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_server import KEY, LIMITED, Running, start

from lifecycle.core.config import ConfigError, read_settings
from lifecycle.inference.adapters import BankSizes
from lifecycle.inference.engine import Engine
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.choices import Served
from lifecycle.serving.config import AdaptersConfig, ServeConfig
from lifecycle.serving.record import FinishedRequest
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.models import random_model
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.weights.adapters import ADAPTER_WEIGHTS, AdapterError, save_adapter

MODEL = random_model(3, "a" * 64, SamplingParams(stop_ids=()), num_layers=1)
ADAPTERS = {name: random_adapter(MODEL.config, seed, rank=2) for seed, name in enumerate(("first", "second", "third"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, adapter in ADAPTERS.items():
        save_adapter(MODEL.config, adapter, folder / name, "base")
    return folder


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(MODEL, num_slots=2, adapters=BankSizes(2, 2)) as engine:
        yield engine


@pytest.fixture
def server(engine: Engine, folder: Path) -> Iterator[Running]:
    config = AdaptersConfig(slots=2, rank=2, models={"first": folder / "first"}, folders=(folder,))
    yield from _running(engine, ServeConfig(port=0, adapters=config))


def _running(engine: Engine, config: ServeConfig) -> Iterator[Running]:
    models, records = {"base": Served(engine, created=1)}, list[FinishedRequest]()
    for base in start(models, config, records):
        running = Running(base, engine, models, records)
        yield running
        names = [card["id"] for card in get(running) if card["parent"]]
        for name in names:  # the engine is shared
            assert post(running, "/v1/unload_lora_adapter", lora_name=name).status_code == 200


def get(server: Running, key: str = KEY) -> list[dict]:
    answer = httpx.get(f"{server.base}/v1/models", headers=bearer(key), timeout=LIMIT_S)
    return answer.json()["data"]


def bearer(key: str) -> Any:
    return {"Authorization": f"Bearer {key}".encode()}


def post(server: Running, path: str, key: str = KEY, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base}{path}", json=body, headers=bearer(key), timeout=LIMIT_S)


def load(server: Running, name: str, path: str, **more: Any) -> httpx.Response:
    return post(server, "/v1/load_lora_adapter", lora_name=name, lora_path=path, **more)


def said(server: Running, model: str) -> str:
    answer = post(server, "/v1/completions", model=model, prompt="Once", max_tokens=8, temperature=0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return answer.json()["choices"][0]["text"]


@pytest.mark.slow
def test_an_adapter_is_a_model_with_a_parent_a_version_and_its_own_answers(server: Running) -> None:
    base, first = get(server)
    assert (base["id"], base["parent"], first["id"], first["parent"]) == ("base", None, "first", "base")
    assert first["version"] == ADAPTERS["first"].version
    texts = {name: said(server, name) for name in ("base", "first")}
    record = server.wait_for_record(2)
    assert (record.model, record.version) == ("first", ADAPTERS["first"].version)
    assert said(server, first["version"]) == texts["first"] != texts["base"]
    vectors = [post(server, "/v1/embeddings", model=name, input="Once").json()["data"] for name in texts]
    assert vectors[0] != vectors[1]
    message = {"role": "user", "content": "Once"}
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [message], "max_tokens": 8},
        "/v1/responses": {"input": "Once", "max_output_tokens": 8},
    }
    for path, body in asked.items():
        answers = [post(server, path, model=name, temperature=0, **body).json() for name in texts]
        texts_of = [answer.get("choices", answer.get("output")) for answer in answers]
        assert texts_of[0] != texts_of[1]
    metrics = httpx.get(f"{server.base}/metrics").text
    version = ADAPTERS["first"].version
    assert f'lifecycle_prompt_tokens_total{{model="first",route="/v1/completions",version="{version}"}}' in metrics
    assert metrics.count("lifecycle_slots{") == 1


def test_adapters_are_loaded_and_unloaded_by_name(server: Running, folder: Path) -> None:
    loaded = load(server, "second", "second")
    assert loaded.status_code == 200, loaded.text
    assert loaded.json() == get(server)[2]
    assert loaded.json()["version"] == ADAPTERS["second"].version
    assert len({said(server, name) for name in ("base", "first", "second")}) == 3
    full = load(server, "third", str(folder / "third"))
    assert full.status_code == 400
    assert "all 2 places for adapters are taken" in full.json()["error"]["message"]
    for name in ("second", "base"):
        assert "is served already" in load(server, name, "second").json()["error"]["message"]
    assert post(server, "/v1/unload_lora_adapter", lora_name="first").json()["deleted"] is True
    assert load(server, "third", str(folder / "third")).status_code == 200
    gone = post(server, "/v1/completions", model="first", prompt="Once")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    for name in ("first", "base", "no such"):
        answer = post(server, "/v1/unload_lora_adapter", lora_name=name)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "lora_name")
    described = httpx.get(f"{server.base}/openapi.json").json()["paths"]
    assert {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"} <= described.keys()


def test_only_adapters_below_the_configured_folders_are_read(server: Running, folder: Path, tmp_path: Path) -> None:
    outside = shutil.copytree(folder / "second", tmp_path / "second")
    (folder / "linked").symlink_to(outside)
    (folder / "files").mkdir(exist_ok=True)
    for file in outside.iterdir():
        (folder / "files" / file.name).symlink_to(file)
    below = f"../{folder.name}/second/../../{tmp_path.name}/second"
    for path in (str(outside), "linked", "files", below, "..", "", ".", "no such", "a\0b", "\ud800", "x" * 5000, "/"):
        answer = httpx.post(
            f"{server.base}/v1/load_lora_adapter",
            content=f'{{"lora_name": "other", "lora_path": {_json(path)}}}',
            headers={"Content-Type": "application/json"},
            timeout=LIMIT_S,
        )
        assert answer.status_code == 400, (path, answer.text)
    assert len(get(server)) == 2
    assert load(server, "other", "second", load_inplace=True).json()["error"]["param"] == "load_inplace"
    assert load(server, "no/name", "second").json()["error"]["param"] == "lora_name"
    broken = shutil.copytree(folder / "second", folder / "broken", dirs_exist_ok=True)
    (broken / ADAPTER_WEIGHTS).write_bytes(b"\0" * 9)
    assert "not a complete safetensors file" in load(server, "other", "broken").json()["error"]["message"]


def _json(text: str) -> str:
    return '"' + "".join(c if " " <= c < "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'


def test_keys_say_who_may_load_and_use_them(
    engine: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", LIMITED)
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "keys:\n  all: {env: A_KEY, may_load_adapters: true}\n  limited: {env: OTHER_KEY, models: [base, second]}\n"
    )
    config = AdaptersConfig(slots=2, rank=2, models={"first": folder / "first"}, folders=(folder,))
    for server in _running(engine, ServeConfig(port=0, keys=keys, adapters=config)):
        refused = post(server, "/v1/load_lora_adapter", LIMITED, lora_name="second", lora_path="second")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_allowed")
        assert load(server, "second", "second").status_code == 200
        assert [card["id"] for card in get(server, LIMITED)] == ["base", "second"]
        answers = [post(server, "/v1/completions", LIMITED, model=name, prompt="a") for name in ("first", "second")]
        assert [answer.status_code for answer in answers] == [403, 200]
        assert post(server, "/v1/unload_lora_adapter", LIMITED, lora_name="second").status_code == 403


def test_without_folders_there_are_no_routes_to_load(engine: Engine) -> None:
    for server in _running(engine, ServeConfig(port=0, adapters=AdaptersConfig(slots=2, rank=2))):
        assert load(server, "second", "second").status_code == 404


def test_an_adapter_of_the_settings_that_does_not_fit_ends_the_start(engine: Engine, folder: Path) -> None:
    config = AdaptersConfig(slots=2, rank=2, models={"base": folder / "first"})
    with pytest.raises(AdapterError, match="'base' is served already"):
        next(_running(engine, ServeConfig(port=0, adapters=config)))


def test_settings_are_given_on_the_command_line_too() -> None:
    given = read_settings(ServeConfig, ["adapters.slots=2", "adapters.models.sql=a/b", "adapters.folders=[c]"]).adapters
    assert given == AdaptersConfig(slots=2, models={"sql": Path("a/b")}, folders=(Path("c"),))
    with pytest.raises(ConfigError, match="2 adapters do not fit 1 slots; set slots=2"):
        read_settings(ServeConfig, ["adapters.slots=1", "adapters.models.a=a", "adapters.models.b=b"])
