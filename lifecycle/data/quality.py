"""Quality rules. Every score is kept with its document; a rule removes by a published threshold.

Prose: the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A1.1: quality filtering, and table A1:
repetition). The stop words are English, so that rule holds for English prose only; words cannot be counted in scripts
that do not put blanks between them, so for those languages only the line and paragraph rules hold.
Source code: StarCoder's rules (Li et al. 2023, arXiv:2305.06161, after Chen et al. 2021, arXiv:2107.03374).
Prose rules do not fit code, nor code rules prose: which set holds is decided by the document's format.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lifecycle.data.config import CodeRule, ProseRule, QualityConfig
from lifecycle.data.documents import Document
from lifecycle.data.ngrams import ngram_hashes, word_hashes

MEAN_WORD_LENGTH = (3.0, 10.0)
MAX_SYMBOL_TO_WORD_RATIO = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
MIN_STOP_WORDS = 2  # different ones
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

type Failure = tuple[ProseRule | CodeRule, str]


def judge_quality(document: Document, config: QualityConfig) -> None:
    """Adds the scores of the document's kind and removes it if a rule that is not disabled fails."""
    if document.format == "code":
        document.scores |= code_scores(document.text)
        failures = _code_failures(document.scores)
    else:
        has_words = document.language not in WITHOUT_BLANKS
        document.scores |= prose_scores(document.text, has_words)
        failures = _prose_failures(document, config, has_words)
    failed = [failure for failure in failures if failure[0] not in config.disable]
    if failed:
        document.remove("quality", failed[0][0], "; ".join(detail for _, detail in failed))


def code_scores(text: str) -> dict[str, float]:
    """`max_line_length` and `mean_line_length` in characters, `alphanumeric_share` of the characters."""
    lengths = [len(line) for line in text.splitlines()]
    return {
        "max_line_length": max(lengths, default=0),
        "mean_line_length": _share(sum(lengths), len(lengths)),
        "alphanumeric_share": _share(sum(map(str.isalnum, text)), len(text)),
    }


def prose_scores(text: str, has_words: bool = True) -> dict[str, float]:
    """Gopher's measures; those of words only if the script separates them."""
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
    """Characters of all occurrences of the most frequent n-gram, over all characters of words; 0 if none occurs twice.

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
    """Characters inside repeats of an earlier n-gram, over all characters of words; overlaps count once.

    As for lines, the first occurrence is no duplicate: a text that says all of it twice scores one half.
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


def _prose_failures(document: Document, config: QualityConfig, has_words: bool) -> Iterator[Failure]:
    scores = document.scores
    if has_words:
        yield from _word_failures(scores, config)
        if document.language == "en" and scores["stop_word_count"] < MIN_STOP_WORDS:
            yield "stop_words", f"{scores['stop_word_count']} of {len(STOP_WORDS)} stop words"
    if scores["bullet_lines"] > MAX_BULLET_LINES:
        yield "bullet_lines", f"bullet_lines {scores['bullet_lines']:.3f} > {MAX_BULLET_LINES}"
    if scores["ellipsis_lines"] > MAX_ELLIPSIS_LINES:
        yield "ellipsis_lines", f"ellipsis_lines {scores['ellipsis_lines']:.3f} > {MAX_ELLIPSIS_LINES}"
    for name, limit in REPETITION.items():
        if scores.get(name, 0.0) > limit:
            yield "repetition", f"{name} {scores[name]:.3f} > {limit}"


def _word_failures(scores: dict[str, float], config: QualityConfig) -> Iterator[Failure]:
    count, length = scores["word_count"], scores["mean_word_length"]
    if count < config.min_words:
        yield "too_few_words", f"{count} words < {config.min_words}"
    if count > config.max_words:
        yield "too_many_words", f"{count} words > {config.max_words}"
    if not MEAN_WORD_LENGTH[0] <= length <= MEAN_WORD_LENGTH[1]:
        yield "mean_word_length", f"mean_word_length {length:.2f} outside {MEAN_WORD_LENGTH}"
    if scores["symbol_to_word_ratio"] > MAX_SYMBOL_TO_WORD_RATIO:
        yield "symbol_to_word_ratio", f"{scores['symbol_to_word_ratio']:.3f} > {MAX_SYMBOL_TO_WORD_RATIO}"
    if scores["alphabetic_words"] < MIN_ALPHABETIC_WORDS:
        yield "alphabetic_words", f"alphabetic_words {scores['alphabetic_words']:.3f} < {MIN_ALPHABETIC_WORDS}"


def _code_failures(scores: dict[str, float]) -> Iterator[Failure]:
    if scores["max_line_length"] > MAX_LINE_LENGTH:
        yield "long_line", f"a line of {scores['max_line_length']} characters > {MAX_LINE_LENGTH}"
    if scores["mean_line_length"] > MAX_MEAN_LINE_LENGTH:
        yield "long_mean_line", f"mean_line_length {scores['mean_line_length']:.1f} > {MAX_MEAN_LINE_LENGTH}"
    if scores["alphanumeric_share"] < MIN_ALPHANUMERIC_SHARE:
        yield "alphanumeric_share", f"{scores['alphanumeric_share']:.3f} < {MIN_ALPHANUMERIC_SHARE}"


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
