"""Quality: measures of prose and of source code, and rules that remove documents by published thresholds.

Prose: the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A1.1: quality filtering, and table A1:
repetition). The stop words are English, so that rule applies to English prose only; words cannot be counted in scripts
that do not put spaces between them, so for those languages only the line and paragraph rules apply.
Source code: StarCoder's rules (Li et al. 2023, arXiv:2305.06161, after Chen et al. 2021, arXiv:2107.03374).
Prose rules do not fit code, nor code rules prose: the document's format decides which set applies.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from lifecycle.data.config import DataConfig, QualityConfig
from lifecycle.data.prose_measures import COUNTS, OF_LINES, OF_WORDS, STOP_WORDS, prose_measures
from lifecycle.data.steps import DocumentStep, Limit

MEAN_WORD_LENGTH = (3.0, 10.0)
MAX_SYMBOL_TO_WORD_RATIO = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
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

OF_CODE = ("max_line_length", "mean_line_length", "alphanumeric_share")
_COUNTS = (*COUNTS, "max_line_length")
_SHARES = (
    "mean_word_length", "symbol_to_word_ratio", "bullet_lines", "ellipsis_lines", "alphabetic_words", *REPETITION,
    "mean_line_length", "alphanumeric_share",
)  # fmt: skip


@dataclass(frozen=True)
class MeasureQuality:
    """The measures of `code_scores` for source code and of `prose_measures` for everything else, those over words only
    if the script separates them; the others are null."""

    columns: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.int64()) for name in _COUNTS] + [(name, pa.float64()) for name in _SHARES]
    )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The quality measures of a batch."""
        texts, languages = batch["text"].to_pylist(), batch["language"].to_pylist()
        is_code = np.array([format == "code" for format in batch["format"].to_pylist()], bool)
        has_words = np.array([language not in WITHOUT_BLANKS for language in languages], bool) & ~is_code
        found = prose_measures([text for text, other in zip(texts, is_code, strict=True) if not other])
        codes = [code_scores(text) for text, other in zip(texts, is_code, strict=True) if other]
        of_code = np.array([list(scores.values()) for scores in codes]).reshape(-1, len(OF_CODE))
        columns: dict[str, pa.Array] = {}
        for names, values, present, among in (
            (OF_CODE, of_code, is_code, is_code),
            (OF_LINES, found.lines, ~is_code, ~is_code),
            (OF_WORDS, found.words, has_words, ~is_code),
            (COUNTS, found.counts, has_words, ~is_code),
        ):
            for name, column in zip(names, values.T, strict=True):
                every = np.zeros(len(texts), column.dtype)
                every[among] = column
                kind = self.columns.field(name).type
                columns[name] = pa.array(every, mask=~present).cast(kind)
        return pa.record_batch([columns[name] for name in self.columns.names], schema=self.columns)


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


def _share(part: float, total: float) -> float:
    return round(part / total, 6) if total else 0.0
