"""The baseline that a language model has to beat: an interpolated Witten-Bell trigram over the same tokens.

    p(w | uv) = (c(uvw) + T(uv) p(w | v)) / (c(uv) + T(uv)),      T(h) = number of distinct tokens seen after h

and likewise down to bigram, unigram and uniform 1/V (Witten and Bell, IEEE Trans. Inf. Theory 37(4), 1991; the
recursive form is Chen and Goodman, 1998, section 2.6). After an unseen history the lower order is used unchanged. What
must hold: after every history the probabilities sum to one over the vocabulary.

A document is `[BOS, ..., EOS]`; its first token is predicted after (BOS, BOS), the EOS is predicted, the BOS is not.
Counts are sorted arrays of keys `(u V + v) V + w`, looked up by binary search, so V^3 must fit in 63 bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifecycle.evals.results import EvalResult, ScoredExample, summarise

type Ints = NDArray[np.int64]
type Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NgramCounts:
    """Counts of one order: per n-gram, and per history its total and its number of distinct followers."""

    keys: Ints  # sorted: history * V + token
    counts: Ints
    histories: Ints  # sorted
    totals: Ints
    types: Ints

    def interpolate(self, history: Ints, token: Ints, vocab_size: int, lower: Floats) -> Floats:
        """p(token | history), given `lower`, the p of the order below."""
        count = _look_up(self.keys, self.counts, history * vocab_size + token)
        total = _look_up(self.histories, self.totals, history)
        types = _look_up(self.histories, self.types, history)
        seen = total > 0
        return np.where(seen, (count + types * lower) / np.where(seen, total + types, 1), lower)


@dataclass(frozen=True)
class Trigram:
    """A fitted model; `unigram[w]` is p(w) for every id of the vocabulary."""

    vocab_size: int
    bos_id: int
    unigram: Floats
    bigrams: NgramCounts
    trigrams: NgramCounts

    def probabilities(self, first: Ints, second: Ints, token: Ints) -> Floats:
        """p(token | first, second), element by element."""
        lower = self.bigrams.interpolate(second, token, self.vocab_size, self.unigram[token])
        return self.trigrams.interpolate(first * self.vocab_size + second, token, self.vocab_size, lower)

    def document_nats(self, documents: Sequence[NDArray[np.integer]]) -> Floats:
        """-log p of every document in nats, EOS included."""
        if not documents:
            return np.zeros(0)
        first, second, token = _contexts(documents, self.bos_id, self.vocab_size)
        nats = -np.log(self.probabilities(first, second, token))
        sums = np.concatenate([[0.0], np.cumsum(nats)])
        ends = np.cumsum([len(document) - 1 for document in documents])
        return np.diff(sums[np.concatenate([[0], ends])])


def fit_trigram(documents: Sequence[NDArray[np.integer]], vocab_size: int, bos_id: int) -> Trigram:
    """Counts the documents' n-grams. Each document begins with `bos_id`; raises `ValueError` otherwise."""
    if vocab_size**3 >= 2**63:
        raise ValueError(f"vocabulary of {vocab_size}: the trigram baseline takes up to {math.floor(2**21 - 1)} ids")
    if not documents:
        raise ValueError("no documents to fit the trigram baseline on")
    first, second, token = _contexts(documents, bos_id, vocab_size)
    counts = np.bincount(token, minlength=vocab_size)
    types = np.count_nonzero(counts)
    return Trigram(
        vocab_size=vocab_size,
        bos_id=bos_id,
        unigram=(counts + types / vocab_size) / (len(token) + types),
        bigrams=_count(second * vocab_size + token, vocab_size),
        trigrams=_count((first * vocab_size + second) * vocab_size + token, vocab_size),
    )


def bits_per_byte(
    model: Trigram, documents: Sequence[NDArray[np.integer]], ids: Sequence[str], num_bytes: Sequence[int], task: str
) -> EvalResult:
    """The baseline's bits per byte over held-out documents, in the form of a model's result.

    ids, num_bytes: for each document, the id of its example and the UTF-8 bytes of its text.
    """
    nats = model.document_nats(documents)
    examples = [
        ScoredExample(id=name, score=float(loss) / math.log(2) / size, weight=size)
        for name, loss, size in zip(ids, nats, num_bytes, strict=True)
    ]
    definition = "interpolated Witten-Bell token trigram"
    return summarise(task, "bits_per_byte", "bits_per_byte", definition, examples, higher_is_better=False)


def _contexts(documents: Sequence[NDArray[np.integer]], bos_id: int, vocab_size: int) -> tuple[Ints, Ints, Ints]:
    """For every token to predict, the two before it and the token itself."""
    for number, document in enumerate(documents):
        if len(document) < 2 or document[0] != bos_id:
            raise ValueError(f"document {number}: expected [BOS={bos_id}, ..., EOS], got {document[:3].tolist()}")
    stream = np.concatenate(documents).astype(np.int64)
    if stream.min() < 0 or stream.max() >= vocab_size:
        raise ValueError(f"token ids from {stream.min()} to {stream.max()} outside of a vocabulary of {vocab_size}")
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]])
    first = np.roll(stream, 2)
    first[starts + 1] = bos_id  # a document's first token follows (BOS, BOS)
    predicted = np.ones(len(stream), bool)
    predicted[starts] = False
    return first[predicted], np.roll(stream, 1)[predicted], stream[predicted]


def _count(grams: Ints, vocab_size: int) -> NgramCounts:
    keys, counts = _runs(np.sort(grams))
    histories, starts = _run_starts(keys // vocab_size)
    totals = np.add.reduceat(counts, starts)
    return NgramCounts(keys, counts, histories, totals, np.diff(starts, append=len(keys)))


def _runs(ordered: Ints) -> tuple[Ints, Ints]:
    """The distinct values of a sorted array and how often each occurs."""
    values, starts = _run_starts(ordered)
    return values, np.diff(starts, append=len(ordered))


def _run_starts(ordered: Ints) -> tuple[Ints, Ints]:
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], starts


def _look_up(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """The values of these keys; zero for a missing key."""
    nearest = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[nearest] == wanted, values[nearest], 0)
