"""`lifecycle register`: a bundle from outside the run becomes a version, with evaluations of its own."""

from pathlib import Path

import pytest

from lifecycle.cli.register import register
from lifecycle.core.artifact import Artifact, Draft
from lifecycle.core.config import ConfigError
from lifecycle.evals.results import ScoredExample, summarise, write_results
from lifecycle.ops.registry import Registry

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


def bundle(root: Path, text: str) -> Artifact:
    draft = Draft(root, "import", {"text": text}, {})
    (draft.open() / "weights").write_text(text)
    return draft.commit({})


def evaluation(root: Path, of: Artifact) -> Path:
    draft = Draft(root, "evaluation", {"bundle": of.content_hash}, {})
    examples = [ScoredExample(id=name, score=score) for name, score in (("a", 0.0), ("b", 1.0))]
    return draft.commit(write_results([summarise("t", "generate", "accuracy", "d", examples)], draft.open())).path


def test_a_bundle_becomes_a_version_and_no_alias_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = bundle(tmp_path / "bundles", "one"), bundle(tmp_path / "bundles", "two")
    settings = (f"root={tmp_path / 'runs'}", "name=mine")
    register(DEBUG, own.path, str(evaluation(tmp_path, own)), *settings)
    registry = Registry(tmp_path / "runs" / "mine" / "registry.db")
    (version,) = registry.versions()
    assert (version.hash, version.kind, registry.aliases()) == (own.content_hash, "base", {})
    assert [result.mean for result in registry.evaluations(version.hash).values()] == [0.5]
    assert f"promote {DEBUG} {version.short}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"not an evaluation of {other.path}"):
        register(DEBUG, other.path, str(evaluation(tmp_path, own)), *settings)
    register(DEBUG, other.path, *settings)
    assert len(registry.versions()) == 2
