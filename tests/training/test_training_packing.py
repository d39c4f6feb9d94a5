"""Packing's laws: within an epoch nothing is lost or doubled, segments do not overlap, and only the index decides."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.mixture import PERIOD, Mixture, rows_per_period
from lifecycle.training.packing import (
    ExampleRows,
    PackingError,
    Row,
    RowSource,
    best_fit_decreasing,
    empty_row,
    permutation,
)

T = 16


@dataclass
class Documents:
    """Documents in memory; every token of a corpus is another number, so that each can be followed."""

    texts: list[np.ndarray]
    index: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_lengths(cls, lengths: list[int]) -> "Documents":
        ends = np.cumsum(lengths)
        return cls([np.arange(end - n + 1, end + 1, dtype=np.uint16) for end, n in zip(ends, lengths, strict=True)])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(text) for text in self.texts], np.int32)

    def __getitem__(self, document: int) -> np.ndarray:
        return self.texts[document]

    def name(self, document: int) -> str:
        return f"document {document}"


@dataclass
class Example:
    ids: list[int]
    loss_mask: list[bool]


def epoch_rows(source: RowSource, epoch: int = 0) -> list[Row]:
    first = epoch * source.num_rows
    return [source.row(index) for index in range(first, first + source.num_rows)]


def learned(row: Row) -> list[tuple[int, int]]:
    """(token, target) where there is loss."""
    where = row["loss_mask"] > 0
    return list(zip(row["tokens"][where].tolist(), row["targets"][where].tolist(), strict=True))


def assert_segments(row: Row) -> None:
    """Segments are 1, 2, ... in order, then padding; positions count from 0 in each; padding is never learned."""
    segments = row["segment_ids"]
    used = segments[segments > 0]
    assert (segments[len(used) :] == 0).all() and (np.diff(used) >= 0).all()
    assert sorted(set(used.tolist())) == list(range(1, used.max(initial=0) + 1))
    for segment in range(1, used.max(initial=0) + 1):
        assert row["positions"][segments == segment].tolist() == list(range((segments == segment).sum()))
    assert not row["loss_mask"][segments == 0].any() and not row["positions"][segments == 0].any()
    assert {name: row[name].dtype.name for name in ("tokens", "targets", "positions", "segment_ids", "loss_mask")} == {
        "tokens": "int32", "targets": "int32", "positions": "int32", "segment_ids": "int32", "loss_mask": "float32",
    }  # fmt: skip


corpora = st.lists(st.integers(1, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 1)


@given(corpora, st.integers(0, 5), st.integers(0, 2**32), st.integers(1, 20))
def test_every_token_but_a_documents_first_is_a_target_once_an_epoch(
    lengths: list[int], epoch: int, seed: int, seq_len: int
) -> None:
    documents = Documents.of_lengths(lengths)
    rows = epoch_rows(DocumentRows(documents, seq_len, seed), epoch)
    seen = Counter(pair for row in rows for pair in learned(row))
    expected = [pair for text in documents.texts for pair in zip(text[:-1].tolist(), text[1:].tolist(), strict=True)]
    assert seen == Counter(expected)


@given(corpora, st.integers(0, 2**32), st.integers(1, 20))
def test_document_rows_keep_documents_apart(lengths: list[int], seed: int, seq_len: int) -> None:
    documents = Documents.of_lengths(lengths)
    owner = {int(token): number for number, text in enumerate(documents.texts) for token in text}
    for row in epoch_rows(DocumentRows(documents, seq_len, seed)):
        assert_segments(row)
        segments = row["segment_ids"]
        pieces = [row["tokens"][segments == segment] for segment in range(1, segments.max() + 1)]
        assert all((np.diff(piece) == 1).all() and len({owner[int(t)] for t in piece}) == 1 for piece in pieces)
        assert len({owner[int(piece[0])] for piece in pieces}) == len(pieces)


def test_a_row_may_be_asked_for_in_any_order_and_again() -> None:
    documents = Documents.of_lengths([5, 30, 1, 17, 9, 22])
    forwards, backwards = (DocumentRows(documents, T, seed=3) for _ in range(2))
    indices = range(4 * forwards.num_rows)
    expected = [forwards.row(index) for index in indices]
    for index in reversed(indices):
        found = backwards.row(index)
        assert all(np.array_equal(found[name], expected[index][name]) for name in found)


def test_epochs_and_seeds_differ_in_order() -> None:
    documents = Documents.of_lengths([7] * 40)
    source, other = DocumentRows(documents, T, seed=0), DocumentRows(documents, T, seed=1)
    orders = [
        [row["tokens"].tolist() for row in rows]
        for rows in (epoch_rows(source), epoch_rows(source, 1), epoch_rows(other))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert source.fingerprint != other.fingerprint != DocumentRows(documents, T + 1, seed=1).fingerprint


def test_documents_have_other_neighbours_in_another_epoch() -> None:
    source = DocumentRows(Documents.of_lengths([T // 2] * 40), T, seed=0)
    first, second = (
        {tuple(row["tokens"][:: T // 2].tolist()) for row in epoch_rows(source, epoch)} for epoch in range(2)
    )
    assert len(first) == len(second) == 20 and len(first & second) < 5


def test_rows_of_a_long_document_are_not_neighbours() -> None:
    rows = epoch_rows(DocumentRows(Documents.of_lengths([T * 100]), T, seed=0))
    starts = np.array([row["tokens"][0] for row in rows])
    assert (np.diff(starts) == T).mean() < 0.1


def test_a_corpus_without_a_target_is_refused() -> None:
    with pytest.raises(PackingError, match="1 tokens in 1 documents"):
        DocumentRows(Documents.of_lengths([1]), T, seed=0)


@given(st.integers(0, 2**64), st.integers(0, 10**6), st.integers(0, 200))
def test_permutation_is_one(seed: int, epoch: int, size: int) -> None:
    assert sorted(permutation(seed, epoch, "rows", size).tolist()) == list(range(size))


def test_permutation_is_pinned() -> None:
    """Another order would change every run that is resumed: these numbers may not change."""
    assert permutation(0, 0, "rows", 8).tolist() == PINNED[0]
    assert permutation(7, 3, "documents", 8).tolist() == PINNED[1]


PINNED = ([2, 0, 1, 7, 3, 4, 5, 6], [7, 3, 1, 2, 4, 0, 6, 5])

unit_lengths = st.lists(st.integers(1, T), min_size=1, max_size=40)


@given(unit_lengths)
def test_best_fit_loses_nothing_and_wastes_less_than_half(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    bins = best_fit_decreasing(lengths, T)
    assert sorted(index for units in bins for index in units) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in units) for units in bins]
    assert max(filled) <= T
    assert len(bins) == 1 or sum(sorted(filled)[:2]) > T  # no two rows would have fitted into one


def examples_of(lengths: list[int]) -> list[Example]:
    """Examples with tokens of their own; the last half of each is learned."""
    ends = np.cumsum(lengths).tolist()
    made = [list(range(end - n + 1, end + 1)) for end, n in zip(ends, lengths, strict=True)]
    return [Example(ids, [2 * i >= len(ids) for i in range(len(ids))]) for ids in made]


@given(unit_lengths, st.integers(0, 3), st.integers(0, 2**32))
def test_examples_are_packed_whole_once_an_epoch(lengths: list[int], epoch: int, seed: int) -> None:
    examples = examples_of(lengths)
    rows = epoch_rows(ExampleRows(examples, T, seed), epoch)
    for row in rows:
        assert_segments(row)
    pieces = [row["tokens"][row["segment_ids"] == s].tolist() for row in rows for s in range(1, T + 1)]
    assert sorted(piece for piece in pieces if piece) == sorted(example.ids for example in examples)
    targets = Counter(target for row in rows for _, target in learned(row))
    assert targets == Counter(
        token for e in examples for token, is_learned in zip(e.ids[1:], e.loss_mask[1:], strict=True) if is_learned
    )


def test_the_contents_of_a_row_are_named_in_the_order_in_which_they_are_in_it() -> None:
    examples, pairs = (
        examples_of([3, 5, 2, 4, 1]),
        list(zip(examples_of([1, 2, 2]), examples_of([3, 2, 4]), strict=True)),
    )
    for source, units, kind in (
        (ExampleRows(examples, T, 0, "rows.jsonl:{}".format), [[e] for e in examples], "examples"),
        (GroupRows([Group(pair) for pair in pairs], T, 0, "rows.jsonl:{}".format), pairs, "rows"),
    ):
        for index in range(2 * source.num_rows):
            named = [int(name.removeprefix("rows.jsonl:")) for name in source.contents(index)[kind]]
            ids = [token for number in named for example in units[number] for token in example.ids]
            assert source.row(index)["tokens"][: len(ids)].tolist() == ids


def test_equal_lengths_are_shuffled_between_epochs() -> None:
    source = ExampleRows(examples_of([4] * 32), T, seed=0)
    first, second = (
        {frozenset(row["tokens"][::4].tolist()) for row in epoch_rows(source, epoch)} for epoch in range(2)
    )
    assert len(first) == len(second) == 8 and not first & second


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(PackingError, match=f"row 1 has {T + 1} tokens"):
        ExampleRows(examples_of([3, T + 1]), T, seed=0)
    with pytest.raises(PackingError, match="no rows"):
        ExampleRows([], T, seed=0)


@given(st.lists(st.tuples(st.integers(1, T // 2), st.integers(1, T // 2)), min_size=1, max_size=20), st.integers(0, 3))
def test_pairs_lie_together_in_a_row(lengths: list[tuple[int, int]], epoch: int) -> None:
    flat = examples_of([n for pair in lengths for n in pair])
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    source = GroupRows([Group(pair) for pair in pairs], T, seed=1)
    rows = epoch_rows(source, epoch)
    seen = []
    for row in rows:
        assert_segments(row)
        assert row["group_mask"].shape == row["group_ids"].shape == (source.max_groups,)
        count = int(row["group_mask"].sum())
        assert row["group_mask"].tolist() == [1] * count + [0] * (source.max_groups - count)
        assert row["segment_ids"].max() == 2 * count
        for place, number in enumerate(row["group_ids"][:count]):
            halves = [row["tokens"][row["segment_ids"] == 2 * place + side] for side in (1, 2)]
            assert [half.tolist() for half in halves] == [pairs[number][0].ids, pairs[number][1].ids]
        seen += row["group_ids"][:count].tolist()
    assert sorted(seen) == list(range(len(pairs)))


def test_an_empty_row_has_the_shapes_and_no_loss() -> None:
    row = GroupRows([Group((Example([1, 2], [False, True]), Example([1, 3], [False, True])))], T, seed=0).row(0)
    empty = empty_row(row)
    assert {name: (a.shape, a.dtype) for name, a in empty.items()} == {n: (a.shape, a.dtype) for n, a in row.items()}
    assert not any(array.any() for array in empty.values())


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=9))
def test_answers_are_counted_from_their_first_learned_target(lengths: list[tuple[int, int]]) -> None:
    examples = [Example(list(range(1, a + b + 1)), [False] * a + [True] * b) for a, b in lengths]
    others = [Example([7] * (a + 1), [False] * a + [True]) for a, _ in lengths]
    groups = [Group([e], {"label": [float(n)]}, [o]) for n, (e, o) in enumerate(zip(examples, others, strict=True))]
    source = GroupRows(groups, T, seed=0)
    for row in epoch_rows(source, 0):
        for place, number in enumerate(row["group_ids"][row["group_mask"] > 0]):
            (a, b), where = lengths[number], row["segment_ids"] == place + 1
            assert row["answer_positions"][where].tolist() == [0] * (a - 1) + list(range(1, b + 1)) + [0]
            assert row["target_mask"][where].tolist() == [1] * (a + b - 1) + [0]
            assert row["label"][place].tolist() == [number]
            assert row["other_tokens"][row["other_segment_ids"] == place + 1].tolist() == [7] * (a + 1)
        assert not row["answer_positions"][row["segment_ids"] == 0].any()


def test_groups_are_alike() -> None:
    one, two = Example([1, 2], [False, True]), Example([1, 3], [False, True])
    with pytest.raises(PackingError, match="differ"):
        GroupRows([Group([one, two]), Group([one])], T, seed=0)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 5))
def test_mixture_has_exact_shares_and_goes_through_each_source_in_order(weights: list[float], periods: int) -> None:
    documents = Documents.of_lengths([40])
    sources = {f"s{n}": DocumentRows(documents, T, seed=n) for n in range(len(weights))}
    mixture = Mixture(sources, {f"s{n}": weight for n, weight in enumerate(weights)})
    begin = periods * PERIOD
    places = [mixture.locate(index) for index in range(begin, begin + PERIOD)]
    for number, weight in enumerate(weights):
        own = [place for name, place in places if name == f"s{number}"]
        assert abs(len(own) - PERIOD * weight / sum(weights)) < 1
        assert own == list(range(periods * len(own), (periods + 1) * len(own)))


def test_mixture_is_spread_evenly() -> None:
    sources = {name: DocumentRows(Documents.of_lengths([40]), T, seed=0) for name in "ab"}
    mixture = Mixture(sources, {"a": 3, "b": 1})
    where = [index for index in range(PERIOD) if mixture.locate(index)[0] == "b"]
    assert set(np.diff(where)) == {4}


def test_mixture_refuses_weights_that_do_not_fit() -> None:
    source = DocumentRows(Documents.of_lengths([40]), T, seed=0)
    with pytest.raises(ConfigError, match="sources are"):
        Mixture({"a": source}, {"b": 1.0})
    with pytest.raises(ConfigError, match="not positive"):
        Mixture({"a": source, "b": source}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ConfigError, match="'b' has less than one row"):
        Mixture({"a": source, "b": source}, {"a": 1.0, "b": 1e-9})
    assert rows_per_period({"a": 1e308, "b": 1e308}) == {"a": PERIOD // 2, "b": PERIOD // 2}
