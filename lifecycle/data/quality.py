"""Quality: measures of prose and of source code, and rules that remove documents by published thresholds.

Prose: the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A1.1: quality filtering, and table A1:
repetition). The stop words are English, so that rule applies to English prose only; words cannot be counted in scripts
that do not put spaces between them, so for those languages only the line and paragraph rules apply.
Source code: StarCoder's rules (Li et al. 2023, arXiv:2305.06161, after Chen et al. 2021, arXiv:2107.03374).
Prose rules do not fit code, nor code rules prose: the document's format decides which set applies.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from lifecycle.data.config import DataConfig, QualityConfig
from lifecycle.data.ngrams import ngram_hashes, word_hashes
from lifecycle.data.steps import DocumentStep, Limit

MEAN_WORD_LENGTH = (3.0, 10.0)
MAX_SYMBOL_TO_WORD_RATIO = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
MIN_STOP_WORDS = 2  # distinct ones
REPETITION = {
    "duplicate_lines": 0.30, "duplicate_paragraphs": 0.30, "duplicate_line_chars": 0.20,
    "duplicate_paragraph_chars": 0.20, "top_2gram_chars": 0.20, "top_3gram_chars": 0.18, "top_4gram_chars": 0.16,
    "duplicate_5gram_chars": 0.15, "duplicate_6gram_chars": 0.14, "duplicate_7gram_chars": 0.13,
    "duplicate_8gram_chars": 0.12, "duplicate_9gram_chars": 0.11, "duplicate_10gram_chars": 0.10,
}  # fmt: skip
MAX_LINE_LENGTH = 1000
MAX_MEAN_LINE_LENGTH = 100.0
MIN_ALPHANUMERIC_SHARE = 0.25
WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "wuu", "yue"))

_SYMBOL = re.compile(r"#|\.\.\.|…")
_BULLET = re.compile(r"\s*(?:[•‣◦●▪*+\-]\s)")
_ELLIPSIS = re.compile(r"(?:\.\.\.|…)\s*$")
_PARAGRAPHS = re.compile(r"\n\s*\n")

_COUNTS = ("word_count", "stop_word_count", "max_line_length")
_SHARES = (
    "mean_word_length", "symbol_to_word_ratio", "bullet_lines", "ellipsis_lines", "alphabetic_words", *REPETITION,
    "mean_line_length", "alphanumeric_share",
)  # fmt: skip


@dataclass(frozen=True)
class MeasureQuality:
    """The measures of `code_scores` for source code and of `prose_scores` for everything else; the others are null."""

    columns: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.int64()) for name in _COUNTS] + [(name, pa.float64()) for name in _SHARES]
    )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The quality measures of a batch."""
        columns = (batch[name].to_pylist() for name in ("text", "format", "language"))
        rows = [
            code_scores(text) if format == "code" else prose_scores(text, language not in WITHOUT_BLANKS)
            for text, format, language in zip(*columns, strict=True)
        ]
        return pa.RecordBatch.from_pylist(rows, schema=self.columns)


def quality_step(config: DataConfig) -> DocumentStep:
    """The step `quality`."""
    rules = tuple(rule for rule in quality_rules(config.quality) if rule.reason not in config.quality.disable)
    return DocumentStep("quality", MeasureQuality(), rules, settings="data.quality.min_words or data.quality.disable")


def quality_rules(config: QualityConfig) -> tuple[Limit, ...]:
    """All rules, in order: the first rule that a document fails is its reason.

    Measures that do not apply to a document are null and fail no rule, so no rule checks the format.
    """
    low, high = MEAN_WORD_LENGTH
    return (
        Limit("too_few_words", "word_count", "{value} words < {low}", low=config.min_words),
        Limit("too_many_words", "word_count", "{value} words > {high}", high=config.max_words),
        Limit("mean_word_length", "mean_word_length", "{column} {value:.2f} outside ({low}, {high})", low, high),
        Limit("symbol_to_word_ratio", "symbol_to_word_ratio", "{value:.3f} > {high}", high=MAX_SYMBOL_TO_WORD_RATIO),
        Limit("alphabetic_words", "alphabetic_words", "{column} {value:.3f} < {low}", low=MIN_ALPHABETIC_WORDS),
        Limit(
            "stop_words", "stop_word_count", f"{{value}} of {len(STOP_WORDS)} stop words",
            low=MIN_STOP_WORDS, language="en",
        ),
        Limit("bullet_lines", "bullet_lines", "{column} {value:.3f} > {high}", high=MAX_BULLET_LINES),
        Limit("ellipsis_lines", "ellipsis_lines", "{column} {value:.3f} > {high}", high=MAX_ELLIPSIS_LINES),
        *(Limit("repetition", name, "{column} {value:.3f} > {high}", high=limit) for name, limit in REPETITION.items()),
        Limit("long_line", "max_line_length", "a line of {value} characters > {high}", high=MAX_LINE_LENGTH),
        Limit("long_mean_line", "mean_line_length", "{column} {value:.1f} > {high}", high=MAX_MEAN_LINE_LENGTH),
        Limit("alphanumeric_share", "alphanumeric_share", "{value:.3f} < {low}", low=MIN_ALPHANUMERIC_SHARE),
    )  # fmt: skip


def code_scores(text: str) -> dict[str, float]:
    """`max_line_length` and `mean_line_length` in characters, `alphanumeric_share` of the characters."""
    lengths = [len(line) for line in text.splitlines()]
    return {
        "max_line_length": max(lengths, default=0),
        "mean_line_length": _share(sum(lengths), len(lengths)),
        "alphanumeric_share": _share(sum(map(str.isalnum, text)), len(text)),
    }


def prose_scores(text: str, has_words: bool = True) -> dict[str, float]:
    """Gopher's measures; those over words only if the script separates words."""
    lines = [line for line in text.splitlines() if line.strip()]
    scores: dict[str, float] = {
        "bullet_lines": _share(sum(1 for line in lines if _BULLET.match(line)), len(lines)),
        "ellipsis_lines": _share(sum(1 for line in lines if _ELLIPSIS.search(line)), len(lines)),
    }
    scores |= _duplicates([line.strip() for line in lines], "line")
    scores |= _duplicates([part.strip() for part in _PARAGRAPHS.split(text) if part.strip()], "paragraph")
    return scores | _word_scores(text) if has_words else scores


def _word_scores(text: str) -> dict[str, float]:
    words = text.split()
    lengths = np.array([len(word) for word in words], np.int64)
    plain = {word.strip(".,;:!?\"'()[]").lower() for word in words}
    scores: dict[str, float] = {
        "word_count": len(words),
        "mean_word_length": _share(int(lengths.sum()), len(words)),
        "symbol_to_word_ratio": _share(len(_SYMBOL.findall(text)), len(words)),
        "alphabetic_words": _share(sum(1 for word in words if any(map(str.isalpha, word))), len(words)),
        "stop_word_count": len(plain & STOP_WORDS),
    }
    hashes = word_hashes(words)
    for n in (2, 3, 4):
        scores[f"top_{n}gram_chars"] = _top_ngram_share(ngram_hashes(hashes, n), lengths, n)
    for n in range(5, 11):
        scores[f"duplicate_{n}gram_chars"] = _duplicate_ngram_share(ngram_hashes(hashes, n), lengths, n)
    return scores


def _duplicates(parts: list[str], unit: str) -> dict[str, float]:
    """Share of lines or paragraphs that repeat an earlier one, counted in parts and in characters."""
    repeats = [(count - 1, len(part)) for part, count in Counter(parts).items()]
    return {
        f"duplicate_{unit}s": _share(sum(count for count, _ in repeats), len(parts)),
        f"duplicate_{unit}_chars": _share(sum(count * size for count, size in repeats), sum(map(len, parts))),
    }


def _top_ngram_share(grams: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Characters in all occurrences of the most frequent n-gram, over all characters in words; 0 if none occurs twice.

    Of equally frequent n-grams the longest counts, so that the score does not depend on hash order.
    """
    if len(grams) == 0:
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    top = counts.max()
    if top < 2:
        return 0.0
    sizes = np.convolve(lengths, np.ones(n, np.int64), "valid")[first[counts == top]]
    return min(1.0, _share(int(top * sizes.max()), int(lengths.sum())))


def _duplicate_ngram_share(grams: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Characters in repeats of an earlier n-gram, over all characters in words; overlaps count once.

    As for lines, the first occurrence is not a duplicate: a text that says everything twice scores one half.
    """
    if len(grams) == 0:
        return 0.0
    _, first = np.unique(grams, return_index=True)
    repeated = np.ones(len(grams), bool)
    repeated[first] = False
    if not repeated.any():
        return 0.0
    covered = np.convolve(repeated.astype(np.int64), np.ones(n, np.int64)) > 0
    return _share(int(lengths[covered].sum()), int(lengths.sum()))


def _share(part: float, total: float) -> float:
    return round(part / total, 6) if total else 0.0
