"""Gopher's measures of prose, compiled: one pass over a text's words, one over its lines, one over its paragraphs.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
appendix A1.1. Lines, paragraphs and n-grams are compared by 64-bit hashes. What must hold: words, lines and characters
are those of `str.split`, `str.splitlines` and Python's classes of characters.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.character_classes import character_classes

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
TOP_NGRAMS, DUPLICATE_NGRAMS = (2, 3, 4), tuple(range(5, 11))
COUNTS = ("word_count", "stop_word_count")
OF_WORDS = (
    "mean_word_length", "symbol_to_word_ratio", "alphabetic_words",
    *(f"top_{n}gram_chars" for n in TOP_NGRAMS), *(f"duplicate_{n}gram_chars" for n in DUPLICATE_NGRAMS),
)  # fmt: skip
OF_LINES = (
    "bullet_lines", "ellipsis_lines",
    "duplicate_lines", "duplicate_line_chars", "duplicate_paragraphs", "duplicate_paragraph_chars",
)  # fmt: skip


class Measures(NamedTuple):
    """Of each text: shares and means, rounded to six places, and counts; the order of columns is that of the names."""

    lines: NDArray[np.float64]  # [texts, OF_LINES]
    words: NDArray[np.float64]  # [texts, OF_WORDS]
    counts: NDArray[np.int64]  # [texts, COUNTS]


def prose_measures(texts: Sequence[str]) -> Measures:
    """The measures of some texts."""
    from lifecycle.data import compiled_prose

    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    found = Measures(
        np.zeros((len(texts), len(OF_LINES))),
        np.zeros((len(texts), len(OF_WORDS))),
        np.zeros((len(texts), len(COUNTS)), np.int64),
    )
    longest = int(np.diff(ends, prepend=0).max(initial=0))
    slots = 2 << (longest + 1).bit_length()
    table = np.zeros(slots, np.uint64), np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    compiled_prose.measure(codes, ends, character_classes(), _stop_words(), table, *found)
    return Measures(_rounded(found.lines), _rounded(found.words), found.counts)


def _rounded(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """To six places as Python rounds: NumPy multiplies first, and is one off in the last place at times."""
    return np.array([round(share, 6) for share in shares.ravel().tolist()]).reshape(shares.shape)


@cache
def _stop_words() -> NDArray[np.uint64]:
    """The hashes of the stop words, in lower case."""
    from lifecycle.data.compiled_prose import hash_of

    codes = (np.frombuffer(word.encode("utf-32-le"), np.uint32) for word in STOP_WORDS)
    return np.array([hash_of(word, 0, len(word), True) for word in codes], np.uint64)
