"""What tests of several rooms share: artifacts with real manifests, and results with given scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.artifact import Artifact, Draft
from lifecycle.evals.results import EvalResult, ScoredExample, summarise

MakeArtifact = Callable[..., Artifact]
MakeResult = Callable[..., EvalResult]


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """Makes a finished artifact in `tmp_path/run` from a stage, file contents, config and inputs."""

    def make(
        stage: str,
        files: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Artifact] | None = None,
    ) -> Artifact:
        draft = Draft(tmp_path / "run", stage, config or {"files": dict(files)}, inputs or {})
        folder = draft.open()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return draft.commit({"files": len(files)})

    return make


@pytest.fixture
def make_result() -> MakeResult:
    """Makes a result from scores; examples are called 0, 1, ... unless `ids` says otherwise."""

    def make(
        task: str,
        scores: Sequence[float],
        weights: Sequence[float] | None = None,
        ids: Sequence[str] | None = None,
        definition: str = "d",
        higher_is_better: bool = True,
    ) -> EvalResult:
        examples = [
            ScoredExample(id=(ids[i] if ids else str(i)), score=score, weight=weights[i] if weights else 1.0)
            for i, score in enumerate(scores)
        ]
        return summarise(task, "generate", "exact", definition, examples, higher_is_better)

    return make
