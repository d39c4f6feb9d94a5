"""A run that changes mixture, length of rows and batch size: within a source's epoch nothing is lost or comes twice."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.training.batches import DataStateError, HostBatch, RowBatches
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.packing import Row
from lifecycle.training.passing import PassingBatches
from lifecycle.training.token_rows import TokenRows

SEED = 3


class Documents:
    """Documents in memory, all of whose tokens differ; some of `Corpus`, by their numbers there."""

    def __init__(self, texts: Sequence[np.ndarray], numbers: Sequence[int], name: str) -> None:
        self._texts, self.numbers, self.index = texts, np.array(numbers), {"name": name}
        self.lengths = np.array([len(text) for text in texts])
        self.read: list[int] = []

    def __getitem__(self, document: int) -> np.ndarray:
        self.read.append(document)
        return self._texts[document]

    def name(self, document: int) -> str:
        return str(self.numbers[document])


class Corpus(Documents):
    """`lengths`: of the documents of each source, which come in turns."""

    def __init__(self, lengths: Mapping[str, Sequence[int]]) -> None:
        self.sources = tuple(lengths)
        order = sorted((place, name) for name, own in lengths.items() for place in range(len(own)))
        sizes = [lengths[name][place] for place, name in order]
        ends = np.cumsum(sizes)
        texts = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        super().__init__(texts, range(len(texts)), "corpus")
        self._own = {name: [i for i, (_, owner) in enumerate(order) if owner == name] for name in lengths}
        self.parts = {name: Documents([texts[i] for i in own], own, name) for name, own in self._own.items()}

    def of_source(self, name: str) -> Documents:
        return self.parts[name]

    @cached_property
    def targets(self) -> dict[str, set[int]]:
        """The targets of each source: all tokens but the documents' first ones."""
        return {n: {int(t) for i in own for t in self._texts[i][1:]} for n, own in self._own.items()}


@dataclass(frozen=True)
class Phase:
    """A stage: its settings of data, and how many steps it takes."""

    mixture: dict[str, float]
    seq_len: int
    size: int
    steps: int

    def rows(self, corpus: Corpus) -> TokenRows:
        return TokenRows(corpus, self.seq_len, self.mixture, SEED)


def rows_of(batch: HostBatch) -> Iterator[Row]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def train(corpus: Corpus, phases: Sequence[Phase], processes: Sequence[int] = (1,)) -> Iterator[Row]:
    """The rows of a chain of stages, each of which goes on from the one before, through JSON. After each step the job
    starts again, with the next of `processes`."""
    step, state = 0, None
    for phase in phases:
        last = step + phase.steps
        while step < last:
            count = processes[step % len(processes)]
            held = [range(i * phase.size // count, (i + 1) * phase.size // count) for i in range(count)]
            hosts = [PassingBatches(RowBatches(phase.rows(corpus), phase.size, own, prefetch=0)) for own in held]
            if state is not None:
                is_first = step == last - phase.steps
                restored = {(h.continue_from if is_first else h.restore)(json.loads(state)) for h in hosts}
                assert restored == {step}
            for host in hosts:
                yield from rows_of(host.batch(step, {}))
            step += 1
            state = json.dumps(hosts[-1].state(step))


def learned(row: Row) -> list[int]:
    """The targets, each of which is the token after the one that it is learned from."""
    where = row["loss_mask"] > 0
    assert (row["targets"][where] == row["tokens"][where] + 1).all() and not row["targets"][~where].any()
    return row["targets"][where].tolist()


def assert_no_target_is_ahead(corpus: Corpus, rows: Iterator[Row]) -> None:
    """The law: after any row, a source's targets have come equally often, but for the epoch under way."""
    owner = {target: name for name, own in corpus.targets.items() for target in own}
    seen = {name: Counter(dict.fromkeys(own, 0)) for name, own in corpus.targets.items()}
    for row in rows:
        assert learned(row), "a row to learn nothing from"
        for target in learned(row):
            seen[owner[target]][target] += 1
        for counts in seen.values():
            assert max(counts.values()) - min(counts.values()) <= 1


NAMES: tuple[str, ...] = ("a", "b", "c")
corpora = st.tuples(*(st.lists(st.integers(2, 30), min_size=1, max_size=5) for _ in NAMES)).map(
    lambda lengths: Corpus(dict(zip(NAMES, lengths, strict=True)))
)
mixtures = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.2, 1.0, 3.0]), max_size=3)  # also none
phases = st.builds(Phase, mixtures, st.integers(2, 24), st.sampled_from([1, 2, 4]), st.integers(1, 12))


@settings(max_examples=25, deadline=None)
@given(corpora, st.lists(phases, min_size=1, max_size=6), st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3))
def test_no_target_of_a_source_comes_twice_before_all_have_come(
    corpus: Corpus, chain: list[Phase], processes: list[int]
) -> None:
    chain = [replace(phase, size=2 * phase.size) for phase in chain]
    assert_no_target_is_ahead(corpus, train(corpus, chain, processes))


@settings(max_examples=10, deadline=None)
@given(corpora, st.lists(phases.filter(lambda phase: phase.mixture), min_size=1, max_size=5), st.integers(2, 20))
def test_with_an_unchanged_length_each_source_goes_on_at_its_next_row(
    corpus: Corpus, chain: list[Phase], seq_len: int
) -> None:
    chain = [replace(phase, seq_len=seq_len) for phase in chain]
    expected = {name: DocumentRows(corpus.of_source(name), seq_len, SEED) for name in NAMES}
    read = dict.fromkeys(NAMES, 0)
    owner = {target: name for name, own in corpus.targets.items() for target in own}
    for row in train(corpus, chain):
        name = owner[learned(row)[0]]
        assert all(np.array_equal(row[key], array) for key, array in expected[name].row(read[name]).items())
        read[name] += 1


@settings(max_examples=10, deadline=None)
@given(corpora, phases, st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_stages_with_the_same_settings_are_one_run(corpus: Corpus, phase: Phase, parts: list[int]) -> None:
    whole = train(corpus, [replace(phase, steps=sum(parts))])
    cut = train(corpus, [replace(phase, steps=steps) for steps in parts])
    rows = [row["tokens"].tolist() for row in train(corpus, [phase, replace(phase, size=1, steps=3)])]
    assert [r["tokens"].tolist() for r in whole] == [r["tokens"].tolist() for r in cut]
    one_by_one = replace(phase, size=1, steps=phase.steps * phase.size + 3)
    assert rows == [row["tokens"].tolist() for row in train(corpus, [one_by_one])]


def test_rows_grow_without_a_loss_and_whole_documents_are_read_whole() -> None:
    """An epoch in rows of 4, of 8 and in one of 128 tokens; the next one has the documents as they are."""
    corpus = Corpus({"a": [20, 9, 31, 2, 16]})
    rows = list(train(corpus, [Phase({}, 4, 1, 9), Phase({}, 8, 1, 4), Phase({}, 128, 1, 2)]))
    first = rows[: 9 + 4 + 1]
    targets = Counter(target for row in first for target in learned(row))
    assert targets == Counter(corpus.targets["a"])  # 78 - 5 targets: 9 rows, 4, and the rest in one
    pieces = [rows[-1]["tokens"][rows[-1]["segment_ids"] == s].tolist() for s in range(1, 6)]
    assert sorted(pieces) == sorted(corpus[i].tolist() for i in range(5))


def test_what_a_row_was_made_from_is_named_after_a_change() -> None:
    corpus = Corpus({"a": [20, 9], "b": [31, 12]})
    chain = [Phase({"a": 1, "b": 1}, 8, 2, 2), Phase({"b": 3, "a": 1}, 12, 4, 1)]
    before = RowBatches(chain[0].rows(corpus), 2, range(2), prefetch=0)
    after = RowBatches(chain[1].rows(corpus), 4, range(4), prefetch=0)
    assert after.continue_from(json.loads(json.dumps(before.state(2)))) == 2
    made = after.contents(2)
    assert [row["row"] for row in made] == [0, 1, 2, 3] and {row["source"] for row in made} == {"a", "b"}
    for row, facts in zip(rows_of(after.batch(2)), made, strict=True):
        named = [(corpus[int(piece["document"])], *piece["tokens"]) for piece in facts["documents"]]
        assert [int(t) for text, begin, end in named for t in text[begin + 1 : end]] == learned(row)


def test_a_step_far_away_is_reached_by_arithmetic() -> None:
    """Through changes in its past, each after millions of steps, without reading a document that is not in the row."""
    corpus = Corpus({"a": [20, 9, 31], "b": [31, 12]})
    chain = [Phase({"a": 1, "b": 2}, 8, 4, 10**6), Phase({"b": 1, "a": 5}, 5, 8, 10**6 + 1), Phase({}, 9, 2, 10**6)]
    source = RowBatches(chain[0].rows(corpus), chain[0].size, [0], prefetch=0)
    step = 0
    for before, after in pairwise([*chain, Phase({"b": 1}, 7, 1, 1)]):
        step += before.steps
        state = json.dumps(source.state(step))
        source = RowBatches(after.rows(corpus), after.size, [0], prefetch=0)
        assert source.continue_from(json.loads(state)) == step
    assert learned(next(rows_of(source.batch(step + 10**6))))
    assert len(corpus.read) == 0 and len(corpus.parts["b"].read) < 8


def test_the_state_of_other_data_or_of_another_phase_is_refused() -> None:
    corpus, other = Corpus({"a": [20, 9], "b": [31]}), Corpus({"a": [20, 9], "b": [30]})
    first, second = Phase({}, 8, 2, 1), Phase({"b": 1}, 12, 2, 1)
    state = RowBatches(first.rows(corpus), 2, [0]).state(1)
    branch = RowBatches(second.rows(corpus), 2, [0])
    branch.continue_from(state)
    inside = json.loads(json.dumps(branch.state(2)))
    assert RowBatches(second.rows(corpus), 2, [1]).restore(inside) == 2
    with pytest.raises(DataStateError, match=r"step 2 was made from other data .* seq_len, mixture or seed differ"):
        RowBatches(first.rows(corpus), 2, [0]).restore(inside)
    with pytest.raises(DataStateError, match="goes on from 2 rows of 8 tokens of other data"):
        RowBatches(second.rows(other), 2, [0]).restore(inside)
    with pytest.raises(DataStateError, match="goes on from 2 rows of 8 tokens of other data"):
        RowBatches(second.rows(other), 2, [0]).continue_from(state)
    with pytest.raises(DataStateError, match="step 1 was made from other data"):
        RowBatches(first.rows(other), 2, [0]).continue_from(state)
