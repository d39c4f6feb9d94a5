"""The document steps in their order: new filters are added to this list.

The order matters: all measures are of normalised text, lines are removed once the language is known and before the
rest is measured, quality and what is unwanted are measured before personal data is masked, and the id and the keys of
near-duplicates are made of the final text. Scores are joined by that id when documents are selected.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.classifier import read_classifier
from lifecycle.data.measures.clean_lines import lines_step
from lifecycle.data.measures.identity import identity_step
from lifecycle.data.measures.language import language_step
from lifecycle.data.measures.minhash import signature_step
from lifecycle.data.measures.normalise import normalise_step
from lifecycle.data.measures.quality import quality_step
from lifecycle.data.measures.rights import read_list
from lifecycle.data.measures.scores import scores_step
from lifecycle.data.measures.steps import DocumentStep, MapStep
from lifecycle.data.measures.unwanted import listed_words, unwanted_step
from lifecycle.data.personal.pii import pii_step

_STEPS: tuple[Callable[[DataConfig], DocumentStep], ...] = (
    normalise_step,
    language_step,
    lines_step,
    quality_step,
    unwanted_step,
    pii_step,
    identity_step,
    signature_step,
)


def document_steps(config: DataConfig) -> tuple[DocumentStep, ...]:
    """All steps with their settings, in order."""
    return (*(make(config) for make in _STEPS), *((scores_step(config),) if config.scores else ()))


def tagging_steps(config: DataConfig) -> tuple[DocumentStep, ...]:
    """The steps that are measured while the sources are read."""
    return tuple(step for step in document_steps(config) if not step.is_joined)


def joined_steps(config: DataConfig) -> tuple[MapStep, ...]:
    """What is measured when documents are selected."""
    return tuple(step.measure for step in document_steps(config) if step.is_joined)


def require_usable_files(config: DataConfig) -> None:
    """Raises `ConfigError` for a list or a classifier that cannot be used: otherwise every file would fail, or the run
    would end when all have been read."""
    for own in config.lists:
        if own.of == "words":
            listed_words(own.path, own.name)
        else:
            read_list(own.path)
    for classifier in config.classifiers:
        read_classifier(Path(classifier.path))
    for place in chain(config.rights.forget, *config.rights.opt_outs.values()):
        read_list(place)
