"""Servers for the tests here: a tiny random model behind two names."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import BROWSER, Browser, chromium
from page_user import User
from scripted_server import Scripted, scripted
from serving_server import KEY, LIMITED, Running, start

from lifecycle.inference.drafting import Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.record import FinishedRequest
from lifecycle.testing.models import SERVED, random_model

ENDLESS = SamplingParams(stop_ids=())  # no answer ends by itself, so that lengths are known


@pytest.fixture(scope="session")
def model() -> Model:
    """What the server serves, with its weights."""
    return random_model(3, "a" * 64, ENDLESS, **SERVED)


@pytest.fixture(scope="session")
def server(model: Model) -> Iterator[Running]:
    records: list[FinishedRequest] = []
    another = Engine(replace(model, version="b" * 64), 2, drafter=Ngram(num_tokens=3))
    with Engine(model, num_slots=2, max_queue=4) as engine, another as other:
        models = {"production": Served(engine, created=1_700_000_000), "candidate": Served(other)}
        for base in start(models, ServeConfig(port=0), records):
            yield Running(base, engine, models, records)


@pytest.fixture
def locked(server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Running]:
    """The same engines behind keys: one of all models, and one with limits."""
    monkeypatch.setenv("TEST_SERVER_KEY", KEY)
    digest = hashlib.sha256(LIMITED.encode()).hexdigest()
    limits = "models: [candidate], requests_per_minute: 4, tokens_per_minute: 40"
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"keys:\n  all: {{env: TEST_SERVER_KEY}}\n  limited: {{sha256: {digest}, {limits}}}\n")
    records: list[FinishedRequest] = []
    for base in start(server.models, ServeConfig(port=0, keys=keys), records):
        yield Running(base, server.engine, server.models, records)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests: each takes a page, most of them in a profile of its own."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def _scripted() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


@pytest.fixture
def script(_scripted: Scripted) -> Iterator[Scripted]:
    """The chat page before a server whose answers the test writes; all of them must be asked for."""
    yield _scripted
    left = [*_scripted.replies]
    _scripted.replies.clear()
    _scripted.sent.clear()
    assert left == []


@pytest.fixture
def user(browser: Browser, script: Scripted) -> Iterator[User]:
    """Someone at that page; no script of it may fail, and nothing may violate its policy."""
    user = User(browser, script.base)
    yield user
    complaints = [line for line in user.page.complaints() if "/v1/chat/completions" not in line]
    user.page.close()
    assert complaints == []
