"""Measures of prose, for the rules of Gopher, C4 and FineWeb.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv:2112.11446,
appendix A1.1; Raffel et al. 2020, arXiv:1910.10683, section 2.2; Penedo et al. 2024, "The FineWeb Datasets",
arXiv:2406.17557, section 3.6. Gopher's paper does not say what a word is: here it is what blanks separate. What the
papers leave open otherwise is counted as datatrove, FineWeb's own program, counts it, so that thresholds mean the same;
where two definitions stay apart, `benchmarks/data/rules.py` names each and counts the verdicts that differ.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.measures.character_classes import character_classes
from lifecycle.data.measures.stop_words import StopWords

TOP_NGRAMS, DUPLICATE_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)
# Columns that need words with blanks between them, and the others.
OF_WORDS = (
    "word_count", "mean_word_length", "hashes_per_word", "ellipses_per_word", "alphabetic_words", "stop_word_count",
    "sentence_count", "line_breaks_per_word",
    *(f"top_{n}gram_chars" for n in TOP_NGRAMS), *(f"duplicate_{n}gram_chars" for n in DUPLICATE_NGRAMS),
)  # fmt: skip
OF_LINES = (
    "bullet_lines", "ellipsis_lines", "duplicate_lines", "duplicate_line_chars", "duplicate_paragraphs",
    "duplicate_paragraph_chars", "punctuated_lines", "short_lines", "duplicate_chars", "curly_brackets", "lorem_ipsum",
)  # fmt: skip
COUNTS = ("word_count", "stop_word_count", "sentence_count", "curly_brackets", "lorem_ipsum")  # the rest are ratios

type Measures = dict[str, NDArray[np.int64] | NDArray[np.float64]]


def prose_measures(
    texts: pa.Array, chosen: NDArray[np.bool_], short_line: int, stop_words: StopWords, lists: NDArray[np.int64]
) -> Measures:
    """The measures of each text that is chosen, 0 for the others; `short_line`: characters of a short line, at most;
    `lists`: the number of each text's list of stop words."""
    from lifecycle.data.measures import compiled_prose

    found = np.zeros(len(texts), compiled_prose.TALLY)
    ngrams = np.zeros((len(texts), len(TOP_NGRAMS) + len(DUPLICATE_NGRAMS)), np.int64)
    classes = character_classes()
    top = TOP_NGRAMS[-1]
    compiled_prose.measure(*utf8(texts), chosen, classes, stop_words, lists, short_line, top, found, ngrams)
    chars, tokens, lines = found["chars"], found["tokens"], found["lines"]
    rows = found["line_feeds"] + 1  # with empty lines
    return {
        "word_count": found["words"],
        "mean_word_length": _share(found["word_chars"], found["words"]),
        "hashes_per_word": _share(found["hashes"], tokens),
        "ellipses_per_word": _share(found["ellipses"], tokens),
        "alphabetic_words": _share(found["alphabetic"], tokens),
        "stop_word_count": np.bitwise_count(found["stop_words"].astype(np.uint64)).astype(np.int64),
        "sentence_count": found["sentences"],
        "line_breaks_per_word": _share(found["line_feeds"], tokens),
        "bullet_lines": _share(found["bullet_lines"], rows),
        "ellipsis_lines": _share(found["ellipsis_lines"], rows),
        "duplicate_lines": _share(found["repeated_lines"], lines),
        "duplicate_line_chars": _share(found["repeated_line_chars"], chars),
        "duplicate_paragraphs": _share(found["repeated_paragraphs"], found["paragraphs"]),
        "duplicate_paragraph_chars": _share(found["repeated_paragraph_chars"], chars),
        "punctuated_lines": _share(found["punctuated_lines"], lines),
        "short_lines": _share(found["short_lines"], lines),
        "duplicate_chars": _share(found["repeated_line_chars"], chars - found["line_feeds"]),
        "curly_brackets": found["braces"],
        "lorem_ipsum": _lorem_ipsum(texts),
        **{f"top_{n}gram_chars": _share(ngrams[:, n - 2], chars) for n in TOP_NGRAMS},
        **{f"duplicate_{n}gram_chars": _share(ngrams[:, n - 2], chars) for n in DUPLICATE_NGRAMS},
    }


def _share(parts: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """0 where the total is."""
    return np.divide(parts, totals, out=np.zeros(len(parts)), where=totals > 0)


def _lorem_ipsum(texts: pa.Array) -> NDArray[np.int64]:
    counts = pc.call_function("count_substring", [texts], pc.MatchSubstringOptions("lorem ipsum", ignore_case=True))
    return counts.to_numpy(zero_copy_only=False).astype(np.int64)
