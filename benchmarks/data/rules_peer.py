"""The other side of `benchmarks/data/rules.py`: datatrove's filters, one rule at a time, and with changed parts.

A `PeerRule` is one of our rules and the filter with only this one of its thresholds. `replaced` puts other functions in
the place of the peer's for a while, such as another way to cut a text into words.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

_MODULES: dict[str, Any] = {
    name: importlib.import_module(f"datatrove.pipeline.filters.{name}")
    for name in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter", "c4_filters")
}
_DOCUMENT: Any = importlib.import_module("datatrove.data").Document
_MARKS: Any = importlib.import_module("datatrove.utils.text").PUNCTUATION_SET
_OWN_WORDS: Any = importlib.import_module("datatrove.utils.text").split_into_words
_QUALITY_OFF: dict[str, Any] = dict.fromkeys((
    "min_doc_words", "max_doc_words", "min_avg_word_length", "max_avg_word_length", "max_symbol_word_ratio",
    "max_bullet_lines_ratio", "max_ellipsis_lines_ratio", "max_non_alpha_words_ratio", "min_stop_words",
))  # fmt: skip
_REPETITION_OFF: dict[str, Any] = dict.fromkeys(
    ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac")
) | {"top_n_grams": (), "dup_n_grams": ()}
_FINEWEB_OFF = {"line_punct_thr": -1.0, "short_line_thr": 1e9, "char_duplicates_ratio": 1e9, "new_line_ratio": 1e9}
_C4_OFF: dict[str, Any] = {
    "remove_citations": False, "filter_no_terminal_punct": False, "min_num_sentences": -1, "min_words_per_line": -1,
    "max_word_length": -1, "filter_lorem_ipsum": False, "filter_javascript": False, "filter_curly_bracket": False,
    "filter_policy": False,
}  # fmt: skip

WITHOUT_WORDS = ("empty", "fails")  # reasons for a text in which there is nothing to count

type Replacement = dict[str, Any]  # of functions, by their name in a module of filters


@dataclass(frozen=True)
class PeerRule:
    """`column` of ours, whether its threshold is a minimum (`low`) or a maximum, and the peer's filter of a threshold.

    `other`: strings that another rule of that filter counts with the same threshold; they are made other marks of as
    many characters. `change`: what makes the peer count as we do where it does not, and `why` we do so.
    """

    column: str
    side: str
    threshold: float
    build: Callable[[float], Any]
    other: tuple[str, ...] = ()
    change: Replacement | None = None
    why: str = ""

    def keeps(self, text: str, threshold: float) -> tuple[bool, str]:
        """Whether the peer's rule keeps a text, and its reason if not."""
        for mark in self.other:
            text = text.replace(mark, "=" * len(mark))
        kept, reason, _ = judged(self.build(threshold), text)
        return kept, reason


def by_blanks(text: str, *_: Any, **__: Any) -> list[str]:
    """Our words."""
    return text.split()


def own_words_without_marks(text: str, *arguments: Any) -> list[str]:
    """The peer's words, but for those that are punctuation."""
    return list(filter(has_words, _OWN_WORDS(text, *arguments)))


def has_words(text: str) -> bool:
    """Whether a text has more than blanks and punctuation."""
    return any(character not in _MARKS and not character.isspace() for character in text)


def bare_words(text: str, *_: Any, **__: Any) -> list[str]:
    """Our words as they are compared with stop words: in lower case, without the marks around them."""
    return [word.strip("".join(_MARKS)).lower() for word in text.split()]


def chars_of_repeated_top(grams: list[str]) -> int:
    """As the peer's function, but 0 if nothing is repeated."""
    top, count = Counter(grams).most_common(1)[0]
    return len(top) * count if count > 1 else 0


def chars_of_repeats(words: list[str], n: int) -> int:
    """As the peer's function, but n-grams are compared as words, not as their letters in a row."""
    seen: set[tuple[str, ...]] = set()
    at = chars = 0
    while at <= len(words) - n:
        gram = tuple(words[at : at + n])
        if gram in seen:
            chars += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return chars


def peer_rules() -> list[PeerRule]:
    """All rules that both sides have, with the published thresholds."""
    quality, repetition, fineweb = (
        _MODULES["gopher_quality_filter"].GopherQualityFilter,
        _MODULES["gopher_repetition_filter"].GopherRepetitionFilter,
        _MODULES["fineweb_quality_filter"].FineWebQualityFilter,
    )

    def of(kind: Any, off: dict[str, Any], name: str) -> Callable[[float], Any]:
        return lambda threshold: kind(**off | {name: threshold})

    def grams(name: str, n: int) -> Callable[[float], Any]:
        return lambda threshold: repetition(**_REPETITION_OFF | {name: ((n, threshold),)})

    once = "an n-gram that occurs once is no repetition"
    joined = "other words with the same letters in a row are no repetition"
    stop = "a stop word may have capital letters and marks around it"
    return [
        PeerRule("word_count", "low", 50, of(quality, _QUALITY_OFF, "min_doc_words")),
        PeerRule("word_count", "high", 100_000, of(quality, _QUALITY_OFF, "max_doc_words")),
        PeerRule("mean_word_length", "low", 3, of(quality, _QUALITY_OFF, "min_avg_word_length")),
        PeerRule("mean_word_length", "high", 10, of(quality, _QUALITY_OFF, "max_avg_word_length")),
        PeerRule("hashes_per_word", "high", 0.1, of(quality, _QUALITY_OFF, "max_symbol_word_ratio"),
                 other=("...", "…")),
        PeerRule("ellipses_per_word", "high", 0.1, of(quality, _QUALITY_OFF, "max_symbol_word_ratio"),
                 other=("#",)),
        PeerRule("bullet_lines", "high", 0.9, of(quality, _QUALITY_OFF, "max_bullet_lines_ratio")),
        PeerRule("ellipsis_lines", "high", 0.3, of(quality, _QUALITY_OFF, "max_ellipsis_lines_ratio")),
        PeerRule("alphabetic_words", "low", 0.8, of(quality, _QUALITY_OFF, "max_non_alpha_words_ratio")),
        PeerRule("stop_word_count", "low", 2, of(quality, _QUALITY_OFF, "min_stop_words"),
                 change={"split_into_words": bare_words}, why=stop),
        PeerRule("duplicate_lines", "high", 0.3, of(repetition, _REPETITION_OFF, "dup_line_frac")),
        PeerRule("duplicate_paragraphs", "high", 0.3, of(repetition, _REPETITION_OFF, "dup_para_frac")),
        PeerRule("duplicate_line_chars", "high", 0.2, of(repetition, _REPETITION_OFF, "dup_line_char_frac")),
        PeerRule("duplicate_paragraph_chars", "high", 0.2, of(repetition, _REPETITION_OFF, "dup_para_char_frac")),
        *(PeerRule(f"top_{n}gram_chars", "high", limit, grams("top_n_grams", n),
                   change={"find_top_duplicate": chars_of_repeated_top}, why=once)
          for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16))),
        *(PeerRule(f"duplicate_{n}gram_chars", "high", limit, grams("dup_n_grams", n),
                   change={"find_all_duplicate": chars_of_repeats}, why=joined)
          for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))),
        PeerRule("punctuated_lines", "low", 0.12, of(fineweb, _FINEWEB_OFF, "line_punct_thr")),
        PeerRule("short_lines", "high", 0.67, of(fineweb, _FINEWEB_OFF, "short_line_thr")),
        PeerRule("duplicate_chars", "high", 0.01, of(fineweb, _FINEWEB_OFF, "char_duplicates_ratio")),
        PeerRule("line_breaks_per_word", "high", 0.3, of(fineweb, _FINEWEB_OFF, "new_line_ratio")),
    ]  # fmt: skip


def pipeline() -> list[Any]:
    """The filters in FineWeb's order, with the published thresholds."""
    return [
        _MODULES["gopher_repetition_filter"].GopherRepetitionFilter(),
        _MODULES["gopher_quality_filter"].GopherQualityFilter(),
        _MODULES["fineweb_quality_filter"].FineWebQualityFilter(),
    ]


def c4(**settings: Any) -> Any:
    """C4's filter with nothing on but what is named."""
    return _MODULES["c4_filters"].C4QualityFilter(**_C4_OFF | settings)


def judged(filter: Any, text: str) -> tuple[bool, str, str]:
    """Whether a filter keeps a text, the reason if not, and what it has made of the text. A filter that fails at a
    text without words keeps nothing."""
    document = _DOCUMENT(text=text, id="")
    try:
        found = filter.filter(document)
    except ZeroDivisionError:
        return False, "fails", text
    kept, reason = found if isinstance(found, tuple) else (found, "")
    return bool(kept), reason, document.text


@contextmanager
def replaced(*changes: Replacement | None) -> Generator[None]:
    """The peer with other functions, of several of one name the last."""
    with ExitStack() as stack:
        for change in changes:
            for name, function in (change or {}).items():
                for module in _MODULES.values():
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, function))
        yield


def sentence_counter(count: Callable[[str], int]) -> Replacement:
    """The peer with our sentences."""

    def sentences(text: str, *_: Any, **__: Any) -> Sequence[None]:
        return [None] * count(text)

    return {"split_into_sentences": sentences}
