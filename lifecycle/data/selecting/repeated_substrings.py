"""Passages of at least so many words that stand twice in the documents: the first occurrence stays, later ones go.

Lee et al. 2022 (arXiv:2107.06499, section 4.1) find them by a suffix array over all text, 8 bytes of it for each byte,
for 50 BPE tokens or more. Here runs of `num_words` words are compared by hashes of 128 bits, which go to files: what is
cut is every word of a run that also stands before, so passages may be of any greater length. In most text little
repeats, so runs are sampled first: of each run the shorter one in it that has the least hash is its mark (winnowing;
Schleimer et al. 2003, SIGMOD), equal runs have equal marks, and only runs whose mark repeats are compared themselves.
A run that overlaps its first occurrence is no copy of it ("ha ha ha ...").
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.mixing import mixed
from lifecycle.data.ngrams import ngram_hashes
from lifecycle.data.placed_words import Words
from lifecycle.data.selecting.cuts import NO_SPANS, Spans
from lifecycle.data.selecting.document_text import DocumentText, widened, within
from lifecycle.data.selecting.repeats import NOWHERE, Keys, Places, Repeats

_ORDINAL = np.int64(1 << 32)  # a place is a document's ordinal times this, and the number of a word in it

type Numbers = NDArray[np.int64]


class Runs(NamedTuple):
    """The words of a document that a passage may have, and its runs of so many of them in a row."""

    words: Words
    parts: Numbers  # the same number for two words: a passage may go from one to the other
    firsts: Numbers  # of each run: its first word
    marks: Numbers  # of each run: where its mark begins, a word


def runs_of(text: DocumentText, num_words: int) -> Runs:
    """The runs of a document."""
    from lifecycle.data.selecting.compiled_passages import least_in_windows

    is_fixed, parts = within(text.words.begins, text.fixed)
    words, parts = text.words.where(~is_fixed), parts[~is_fixed]
    num_runs = max(0, len(words) - num_words + 1)
    marks = np.empty(num_runs, np.int64)
    grams = mixed(ngram_hashes(words.hashes, _mark_words(num_words)))
    least_in_windows(grams, num_words - _mark_words(num_words) + 1, marks)
    firsts = np.flatnonzero(parts[:num_runs] == parts[len(parts) - num_runs :])
    return Runs(words, parts, firsts, marks[firsts])


def _mark_words(num_words: int) -> int:
    return (num_words + 1) // 2


def _keys(runs: Runs, firsts: Numbers, num_words: int) -> Keys:
    from lifecycle.data.selecting.compiled_passages import hash_runs

    keys = np.empty((len(firsts), 2), np.uint64)
    hash_runs(runs.words.hashes, firsts, firsts + num_words, keys)
    return keys


@dataclass(frozen=True)
class Marks:
    """The marks of a document's runs, each once, and where they begin."""

    num_words: int

    def __call__(self, text: DocumentText) -> tuple[Keys, Places]:
        """Keys and places."""
        runs = runs_of(text, self.num_words)
        marks = np.unique(runs.marks)
        return _keys(runs, marks, _mark_words(self.num_words)), text.ordinal * _ORDINAL + marks


@dataclass(frozen=True)
class RunKeys:
    """The runs of a document whose marks repeat, and where they begin."""

    num_words: int
    marks: Repeats

    def __call__(self, text: DocumentText) -> tuple[Keys, Places]:
        """Keys and places."""
        keys, _, firsts = self.runs(text)
        return keys, text.ordinal * _ORDINAL + firsts

    def runs(self, text: DocumentText) -> tuple[Keys, Runs, Numbers]:
        """Their keys, all runs of the document, and the first words of those that the keys are of."""
        runs = runs_of(text, self.num_words)
        marks, of_mark = np.unique(runs.marks, return_inverse=True)
        repeat = self.marks.last_places(_keys(runs, marks, _mark_words(self.num_words))) != NOWHERE
        firsts = runs.firsts[repeat[of_mark]]
        return _keys(runs, firsts, self.num_words), runs, firsts


@dataclass(frozen=True)
class RepeatedSubstrings:
    """The passages of a document that stand before, in others or in itself."""

    runs: RunKeys
    repeats: Repeats

    def __call__(self, text: DocumentText) -> Spans:
        """The bytes of each."""
        keys, runs, firsts = self.runs.runs(text)
        before = self.repeats.last_places(keys)
        places = text.ordinal * _ORDINAL + firsts
        # in another document the difference is larger than any document has words, or nearly so
        is_copy = places - before >= self.runs.num_words
        return passages(text, runs, firsts[is_copy], self.runs.num_words)


def passages(text: DocumentText, runs: Runs, firsts: Numbers, num_words: int) -> Spans:
    """The bytes of the words of these runs, as far as the blanks at their sides."""
    if not len(firsts):
        return NO_SPANS
    apart = np.flatnonzero((np.diff(firsts) > num_words) | (np.diff(runs.parts[firsts]) != 0))
    lows, highs = firsts[np.append(0, apart + 1)], firsts[np.append(apart, len(firsts) - 1)] + num_words
    return word_spans(text, runs, lows, highs)


def word_spans(text: DocumentText, runs: Runs, lows: Numbers, highs: Numbers) -> Spans:
    """The bytes of the words from `low` to before `high`, with what stands next to them up to a blank, another word or
    something fixed."""
    data, spans = text.data.tobytes(), list[tuple[int, int]]()
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        floor, roof = text.room(int(runs.parts[low]))
        floor = max(floor, int(runs.words.ends[low - 1])) if low else floor
        roof = min(roof, int(runs.words.begins[high])) if high < len(runs.words) else roof
        spans.append(widened(data, int(runs.words.begins[low]), int(runs.words.ends[high - 1]), floor, roof))
    return np.array(spans, np.int64).reshape(-1, 2)
