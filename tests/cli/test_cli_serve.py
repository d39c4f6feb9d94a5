"""A running server follows the registry's aliases."""

import io
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from lifecycle.cli import aliases
from lifecycle.cli.aliases import AliasedModels
from lifecycle.core.artifact import Artifact, Draft
from lifecycle.ops.registry import Registry, Version
from lifecycle.serving.choices import Served
from lifecycle.testing.waiting import wait_until


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
