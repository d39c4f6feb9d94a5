"""A running server follows the registry's aliases; a second start compiles nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from lifecycle.cli import aliases
from lifecycle.cli.aliases import AliasedModels
from lifecycle.core.artifact import Artifact, Draft
from lifecycle.ops.registry import Registry, Version
from lifecycle.serving.choices import Served
from lifecycle.testing.models import random_model
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.weights.published import save_weights


def bundle(root: Path, text: str) -> Artifact:
    draft = Draft(root, "bundle", {"text": text}, {})
    (draft.open() / "weights").write_text(text)
    return draft.commit({})


def start(version: Version) -> Served:
    """A version stands for its engine; one called broken cannot be loaded."""
    if version.manifest.config["text"] == "broken":
        raise ValueError("no weights")
    return cast(Served, version.hash)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry.db")
    for text in ("one", "two", "broken"):
        registry.register(bundle(tmp_path, text).path, "chat")
    return registry


def named(registry: Registry, text: str) -> str:
    return next(version.hash for version in registry.versions() if version.manifest.config["text"] == text)


def test_an_alias_that_moves_is_followed_and_one_that_cannot_be_loaded_is_told(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aliases, "FOLLOW_S", 0.01)
    one, two, broken = (named(registry, text) for text in ("one", "two", "broken"))
    registry.move("candidate", one, who="test", why="test")
    registry.move("production", one, who="test", why="test")
    models = AliasedModels(registry, start, Console())
    assert list(models) == ["production", "candidate", registry.resolve(one).short]

    def wait_until_production_is(version: str) -> None:
        wait_until(lambda: models["production"] == version)

    with models.following():
        registry.move("production", two, who="test", why="test")
        wait_until_production_is(two)
        registry.move("candidate", broken, who="test", why="test")
        output = io.StringIO()

        def names_the_reason() -> bool:
            output.write(capsys.readouterr().out)
            return "no weights" in output.getvalue()

        wait_until(names_the_reason)
        assert output.getvalue().count("no weights") == 1
        assert models["candidate"] == one
        registry.move("candidate", one, who="test", why="test")
        registry.rollback("production", who="test", why="test")
        wait_until_production_is(one)


def test_a_version_that_cannot_be_loaded_holds_up_no_other_alias(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, broken = (named(registry, text) for text in ("one", "two", "broken"))
    registry.move("production", one, who="test", why="test")
    models = AliasedModels(registry, start, Console())
    for alias, version in (("candidate", broken), ("production", two)):  # both before the next look
        registry.move(alias, version, who="test", why="test")
    models._refresh()
    assert models["production"] == two and "candidate" not in models
    assert capsys.readouterr().out.count("alias ignored: no weights") == 1


def test_a_server_does_not_start_with_a_version_that_cannot_be_loaded(registry: Registry) -> None:
    registry.move("production", named(registry, "broken"), who="test", why="test")
    with pytest.raises(ValueError, match="no weights"):
        AliasedModels(registry, start, Console())


START = """
import json
from collections import Counter
import jax
heard = Counter()
jax.monitoring.register_event_listener(lambda event, **_: heard.update([event.rpartition("/")[2]]))
from lifecycle.cli import serve
serve.answer = lambda app, listener: print(json.dumps(heard))
from lifecycle.cli.main import main
main()
"""


@pytest.mark.long
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """Every program, also one that compiles in no time, is in the cache that the first start has left."""
    model, bundle = random_model(num_layers=1, max_seq_len=128), tmp_path / "tiny"
    bundle.mkdir()
    save_weights(model.config, model.params, bundle)
    model.tokenizer.save(bundle)
    model.template.save(bundle)
    command = [sys.executable, "-c", START, "serve", str(bundle), "serve.port=0"]
    found: list[dict[str, int]] = []
    for _ in range(2):
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        assert ended.returncode == 0, ended.stderr
        found.append(json.loads(ended.stdout.splitlines()[-1]))
    first, second = found
    assert first["cache_misses"] >= 4  # three lengths of chunks, and decode
    assert "cache_misses" not in second and second["cache_hits"] == second["compile_requests_use_cache"] > 4
