"""The trigram baseline against a plain dictionary implementation, its sums, and its bad input."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.evals.trigram import bits_per_byte, fit_trigram

BOS, EOS, VOCAB = 1, 2, 11
DOCUMENT = st.lists(st.integers(3, VOCAB - 1), max_size=12).map(lambda ids: np.array([BOS, *ids, EOS], np.uint16))


class PlainTrigram:
    """The textbook's recursion with dictionaries."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for document in documents:
            padded = [BOS, *document.tolist()]
            for i in range(2, len(padded)):
                for order in range(3):
                    self.followers[tuple(padded[i - order : i])][padded[i]] += 1

    def p(self, history: tuple[int, ...], token: int) -> float:
        lower = self.p(history[1:], token) if history else 1 / VOCAB
        seen = self.followers.get(history)
        if not seen:
            return lower
        return (seen[token] + len(seen) * lower) / (seen.total() + len(seen))

    def nats(self, document: np.ndarray) -> float:
        padded = [BOS, *document.tolist()]
        return -sum(math.log(self.p((padded[i - 2], padded[i - 1]), padded[i])) for i in range(2, len(padded)))


@settings(max_examples=50, deadline=None)
@given(st.lists(DOCUMENT, min_size=1, max_size=6), st.lists(DOCUMENT, min_size=1, max_size=4))
def test_equals_the_plain_implementation(train: list[np.ndarray], heldout: list[np.ndarray]) -> None:
    model, plain = fit_trigram(train, VOCAB, BOS), PlainTrigram(train)
    assert model.document_nats(heldout) == pytest.approx([plain.nats(d) for d in heldout], rel=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.lists(DOCUMENT, min_size=1, max_size=6), st.integers(0, VOCAB - 1), st.integers(0, VOCAB - 1))
def test_probabilities_sum_to_one_after_every_history(train: list[np.ndarray], first: int, second: int) -> None:
    every = np.arange(VOCAB)
    model = fit_trigram(train, VOCAB, BOS)
    p = model.probabilities(np.full(VOCAB, first), np.full(VOCAB, second), every)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()


def test_bits_per_byte_is_total_bits_over_total_bytes() -> None:
    train = [np.array([BOS, 3, 4, 3, 4, EOS]), np.array([BOS, 5, 3, 4, EOS])]
    heldout = [np.array([BOS, 3, 4, EOS]), np.array([BOS, 5, 5, 5, 9, EOS])]
    model = fit_trigram(train, VOCAB, BOS)
    result = bits_per_byte(model, heldout, ["a", "b"], [4, 9], "trigram")
    assert result.mean == pytest.approx(float(model.document_nats(heldout).sum()) / math.log(2) / 13)
    assert not result.higher_is_better
    assert [example.id for example in result.examples] == ["a", "b"]


def test_documents_do_not_leak_into_each_other() -> None:
    cut, whole = np.array([BOS, 3, 5]), np.array([BOS, 4, EOS])
    model = fit_trigram([cut, whole], VOCAB, BOS)
    assert model.document_nats([whole, cut, whole]) == pytest.approx(
        [float(model.document_nats([document])[0]) for document in (whole, cut, whole)]
    )
    assert model.document_nats([cut, whole]) == pytest.approx(
        [PlainTrigram([cut, whole]).nats(document) for document in (cut, whole)]
    )


def test_a_large_vocabulary_still_fits_its_keys() -> None:
    vocab = 200_000
    documents = [np.array([BOS, vocab - 1, vocab - 2, vocab - 1, EOS], np.uint32)]
    model = fit_trigram(documents, vocab, BOS)
    assert model.document_nats(documents)[0] < 4 * math.log(3)


@pytest.mark.parametrize(
    ("documents", "vocab", "message"),
    [
        ([np.array([3, 4, EOS])], VOCAB, r"document 0: expected \[BOS=1"),
        ([np.array([BOS, 40, EOS])], VOCAB, "outside of a vocabulary of 11"),
        ([np.array([BOS, 4, EOS])], 3_000_000, "takes up to 2097151 ids"),
        ([], VOCAB, "no documents"),
    ],
)
def test_bad_input(documents: list[np.ndarray], vocab: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_trigram(documents, vocab, BOS)
