"""What the verbs of `data` read: a run's finished documents, by its config, or those in a folder or at an address."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import YAML, read_config
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.fetched import local_copy
from lifecycle.core.progress import Progress
from lifecycle.core.store import is_url
from lifecycle.stages.chain import finished_stage, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, present
from lifecycle.stages.names import DOCUMENTS, TAGGING, of_corpus
from lifecycle.stages.storage import readable

if TYPE_CHECKING:
    from lifecycle.report.data_page import DataRun


type CorpusName = Annotated[str | None, Parameter(name="--corpus", help="Of a run with several: which one.")]


def chosen_corpus(run: RunConfig, name: str | None) -> str:
    """The corpus of this name, or the run's only one; raises `ConfigError` if there is none, or if several ask for a
    name."""
    known = ", ".join(run.corpora)
    if not run.corpora:
        raise ConfigError(f"the run {run.name} has no section data, so it selects no documents")
    if name is None and len(run.corpora) > 1:
        raise ConfigError(f"the run {run.name} has several corpora: add --corpus with one of {known}")
    if name is not None and name not in run.corpora:
        only = f"; its only one has no name: leave out --corpus={name}" if not known else nearest(name, run.corpora)
        raise ConfigError(f"the run {run.name} has no corpus {name!r}{only}")
    return next(iter(run.corpora)) if name is None else name


def documents_of(run: RunConfig, corpus: str) -> Artifact:
    """The finished documents of a corpus."""
    return finished_stage(run, of_corpus(DOCUMENTS, corpus))


def documents_folder(place: str, overrides: tuple[str, ...], corpus: str | None) -> Path:
    """The folder with the documents of a run that its config names, or of an artifact of stage `documents`."""
    if Path(place).suffix in YAML:
        run = read_config(Path(place), overrides)
        return documents_of(run, chosen_corpus(run, corpus)).path
    if given := [*overrides, *([] if corpus is None else [f"--corpus={corpus}"])]:
        raise ConfigError(f"{place} is a folder, so {given[0]} changes nothing; leave it out")
    return local_copy(place) if is_url(place) else Path(place)


def data_run(run: RunConfig, corpus: str, progress: Progress) -> "DataRun":
    """What the page on a corpus's documents is made from; reads all documents, but few of their texts."""
    from lifecycle.data.inspecting.distributions import Score, scores_of
    from lifecycle.data.inspecting.survey import survey, token_counts
    from lifecycle.data.measures.classifier import read_classifier
    from lifecycle.data.measures.filters import document_steps
    from lifecycle.data.selecting.contamination import evidence_of
    from lifecycle.report.data_page import DataRun
    from lifecycle.report.numbers import FUNNEL

    data, documents = run.corpora[corpus], documents_of(run, corpus)
    steps, tokens = document_steps(data), _tokens(run)
    before = [documents_of(run, other).path for other in sorted(run.corpora) if other < corpus]  # as `by_corpus`
    counts = {} if tokens is None else token_counts(tokens.path, before)
    language = Score("language_score", None, data.language.min_score, float("inf"), ("language undetermined",))
    found = survey(documents.path, steps, [language, *scores_of(steps)], counts, run.seed, progress)
    return DataRun(
        name=f"{run.name}: {corpus}" if corpus else run.name,
        tagging=finished_stage(run, of_corpus(TAGGING, corpus)),
        documents=documents,
        tokens=tokens,
        funnel=json.loads((documents.path / FUNNEL).read_text(encoding="utf-8")),
        survey=found,
        evidence=evidence_of(documents.path),
        classifiers={own.name: read_classifier(Path(own.path)).manifest for own in data.classifiers},
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
