"""What the verbs of `data` read: a run's finished documents, by its config, or those in a folder or at an address."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lifecycle.cli.arguments import YAML, read_config
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import local_copy
from lifecycle.core.progress import Progress
from lifecycle.core.store import is_url
from lifecycle.data.config import DataConfig
from lifecycle.stages.chain import finished_stage, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, present
from lifecycle.stages.storage import readable

if TYPE_CHECKING:
    from lifecycle.report.data_page import DataRun


def data_of(run: RunConfig) -> DataConfig:
    """The run's settings of data; raises `ConfigError` if it has none."""
    if run.data is None:
        raise ConfigError(f"the run {run.name} has no section data, so it selects no documents")
    return run.data


def documents_folder(place: str, overrides: tuple[str, ...]) -> Path:
    """The folder with the documents of a run that its config names, or of an artifact of stage `documents`."""
    if Path(place).suffix in YAML:
        run = read_config(Path(place), overrides)
        data_of(run)
        return finished_stage(run, "documents").path
    if overrides:
        raise ConfigError(f"{place} is a folder, so {overrides[0]} changes nothing; leave it out")
    return local_copy(place) if is_url(place) else Path(place)


def data_run(run: RunConfig, progress: Progress) -> "DataRun":
    """What the page on the run's documents is made from; reads all documents, but few of their texts."""
    from lifecycle.data.inspecting.distributions import Score, scores_of
    from lifecycle.data.inspecting.survey import survey, token_counts
    from lifecycle.data.measures.filters import document_steps
    from lifecycle.data.selecting.contamination import evidence_of
    from lifecycle.report.data_page import DataRun
    from lifecycle.report.numbers import FUNNEL

    data, documents = data_of(run), finished_stage(run, "documents")
    steps, tokens = document_steps(data), _tokens(run)
    counts = {} if tokens is None else token_counts(tokens.path)
    language = Score("language_score", None, data.language.min_score, float("inf"), ("language undetermined",))
    found = survey(documents.path, steps, [language, *scores_of(steps)], counts, run.seed, progress)
    return DataRun(
        name=run.name,
        tagging=finished_stage(run, "tagging"),
        documents=documents,
        tokens=tokens,
        funnel=json.loads((documents.path / FUNNEL).read_text(encoding="utf-8")),
        survey=found,
        evidence=evidence_of(documents.path),
        price=run.price,
    )


def _tokens(run: RunConfig) -> Artifact | None:
    """The token shards, if they are finished: the number of tokens of each document."""
    for state in states(run, present(build_graph(run), "tokens")):
        if state.stage.name == "tokens" and state.artifact is not None:
            readable(run).fetch(
                state.artifact, [name for name in state.artifact.manifest.files if name.endswith(".npy")]
            )
            return state.artifact
    return None
