"""Gopher's measures of prose in plain Python, for comparison with the compiled ones."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lifecycle.data.ngrams import Hashes, ngram_hashes

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_SYMBOL = re.compile(r"#|\.\.\.|…")
_BULLET = re.compile(r"\s*(?:[•‣◦●▪*+\-]\s)")
_ELLIPSIS = re.compile(r"(?:\.\.\.|…)\s*$")
_PARAGRAPHS = re.compile(r"\n\s*\n")


def prose_scores(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line.strip()]
    scores: dict[str, float] = {
        "bullet_lines": _share(sum(1 for line in lines if _BULLET.match(line)), len(lines)),
        "ellipsis_lines": _share(sum(1 for line in lines if _ELLIPSIS.search(line)), len(lines)),
    }
    scores |= _duplicates([line.strip() for line in lines], "line")
    scores |= _duplicates([part.strip() for part in _PARAGRAPHS.split(text) if part.strip()], "paragraph")
    return scores | _word_scores(text)


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
    hashes = _hashes(words)
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


def _hashes(words: Sequence[str]) -> Hashes:
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(words))
