"""Passages of a text that documents have word for word, by a text index: the longest first, each with documents.

As OLMoTrace does for generated text (Liu et al. 2025, arXiv:2504.07096, section 3): a passage counts if no document has
it longer. It says where words occur, not why a model wrote them. What must hold: what is reported was read in the
document's text; what was too common to be looked up, or too much to be read, is said.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.text_index import BLOCK_TEXTS, PASSAGE, Block, read_blocks
from lifecycle.data.placed_words import Words, letters, words_of

# For a text, at most: a hit takes 200 ns, a byte of a document 7, a step 1. They bound a lookup to some seconds.
MOST_HITS, MOST_READ, MOST_STEPS = 8_000_000, 128 << 20, 500_000_000
_RANKED = 20  # as many passages as are shown are ranked
AROUND = 120  # bytes of a document that are shown on either side of a passage

type Span = tuple[int, int]  # words of the text: the first one, and the one behind the last


@dataclass(frozen=True)
class Holder:
    """A document that has a passage: its number in its split, and the passage in its text, with what is around it."""

    split: Split
    number: int
    before: str
    passage: str
    after: str


@dataclass(frozen=True)
class Passage:
    """A passage of the text. `num_documents` have it, or fewer: only `holders` were read."""

    text: str
    num_words: int
    num_documents: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True)
class Found:
    """What documents have of a text: of all `num_passages`, the first ones, by length and then by rarity.

    `num_common` runs of `PASSAGE` words were too common to be looked up; `is_whole` is false if reading stopped early.
    In both cases a passage may be missing, or may go on.
    """

    num_words: int
    num_covered: int  # words that are in a passage
    num_passages: int
    passages: tuple[Passage, ...]
    num_common: int
    is_whole: bool


class TextIndex:
    """An index that is read (`text_index.made_index`)."""

    def __init__(self, index: Artifact) -> None:
        self._blocks = tuple(read_blocks(index))
        self._num_kept: int = index.stats["kept"]

    def find(self, text: str, most_passages: int, most_documents: int) -> Found:
        """The passages of a text that documents have. Raises `ConfigError` for a text of fewer than `PASSAGE` words."""
        data = np.frombuffer(unicodedata.normalize("NFC", text).encode("utf-8", "replace"), np.uint8)
        words = words_of(data)
        if len(words) < PASSAGE:
            raise ConfigError(
                f"the text has {len(words)} words; give {PASSAGE} or more: shorter passages are in documents by chance"
            )
        chains = _chains_of(words, self._blocks)
        reading = _Reading(self._blocks, words, chains)
        spans = reading.spans()
        first = _first(spans, words, chains, most_passages)
        passages = tuple(self._passage(reading, data, span, most_documents) for span in first)
        covered = np.zeros(len(words), bool)
        for begin, end in spans:
            covered[begin:end] = True
        return Found(
            len(words), int(covered.sum()), len(spans), passages, int((~chains.is_used).sum()), reading.is_whole
        )

    def _passage(self, reading: "_Reading", data: NDArray[np.uint8], span: Span, most: int) -> Passage:
        """A passage with the first documents that have it."""
        num_words = span[1] - span[0]
        own, holders = data[reading.words.begins[span[0]] : reading.words.ends[span[1] - 1]], []
        for block, number, place in reading.holders(span):
            words = words_of(text := block.text(number))
            begin, end = int(words.begins[place]), int(words.ends[place + num_words - 1])
            if _folded(text[begin:end]) == _folded(own):
                holders.append(self._holder(block.first + number, text, begin, end))
            if len(holders) == most:
                break
        return Passage(_decoded(own), num_words, reading.num_with(span), tuple(holders))

    def _holder(self, number: int, text: NDArray[np.uint8], begin: int, end: int) -> Holder:
        pieces = text[max(0, begin - AROUND) : begin], text[begin:end], text[end : end + AROUND]
        if number < self._num_kept:
            return Holder("kept", number, *map(_decoded, pieces))
        return Holder("heldout", number - self._num_kept, *map(_decoded, pieces))


def _first(spans: Sequence[Span], words: Words, chains: "_Chains", most: int) -> list[Span]:
    """The longest spans, of equally long ones the rarest; of spans of the same words one."""
    distinct: dict[bytes, Span] = {}
    for begin, end in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if len(distinct) == _RANKED * most:
            break
        distinct.setdefault(words.hashes[begin:end].tobytes(), (begin, end))
    return sorted(distinct.values(), key=lambda span: (span[0] - span[1], chains.num_with(span), span))[:most]


@dataclass(frozen=True)
class _Chains:
    """What documents may have by the index, the longest first, then by words and document: of each the words of the
    text, and the document, which has a row in `names`: the number of its block, and its own there. `counts` has, for
    each run of `PASSAGE` words, how many documents have it; where `is_used` is false it is in no chain."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    documents: NDArray[np.int64]
    names: NDArray[np.int64]
    counts: NDArray[np.int64]
    is_used: NDArray[np.bool_]

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """[groups + 1, 3]: the words of chains that have the same ones, and the first of these chains; then the end."""
        firsts = np.flatnonzero(np.diff(self.begins, prepend=-1) | np.diff(self.ends, prepend=-1))
        return np.stack(
            [np.append(of[firsts], -1) for of in (self.begins, self.ends)] + [np.append(firsts, len(self.begins))], 1
        )

    def num_with(self, span: Span) -> int:
        """How many documents may have the whole of a span; each has it in one chain at most."""
        own = slice(span[0], span[1] - PASSAGE + 1)
        if not self.is_used[own].all():
            return int(self.counts[own].min())
        begins, ends, firsts = self.groups.T
        return int(np.diff(firsts)[(begins[:-1] <= span[0]) & (ends[:-1] >= span[1])].sum())

    def with_all_of(self, span: Span) -> NDArray[np.int64]:
        """The chains that have the whole of a span."""
        return np.flatnonzero((self.begins <= span[0]) & (self.ends >= span[1]))


def _chains_of(words: Words, blocks: Sequence[Block]) -> _Chains:
    """The chains of a text in all blocks."""
    from lifecycle.data.inspecting.compiled_index import chain, count_hits, hash_grams

    keys = np.empty(len(words) - PASSAGE + 1, np.uint64)
    counts = np.zeros(hash_grams(words.hashes, PASSAGE, keys), np.int64)
    for block in blocks:
        count_hits(block.starts, block.prints, keys, counts)
    order = np.argsort(counts, kind="stable")
    is_used = np.empty(len(keys), bool)
    is_used[order] = np.cumsum(counts[order]) <= MOST_HITS
    room, rows = np.empty((int(counts[is_used].sum()), 3), np.int64), [np.empty((0, 3), np.int64)]
    for at, block in enumerate(blocks):
        found = room[: chain(block.starts, block.prints, block.texts, keys, is_used, room)]
        rows.append(found + np.array([at * BLOCK_TEXTS, 0, PASSAGE]))
    table = np.concatenate(rows)
    texts, begins, ends = table[np.lexsort((table[:, 1], table[:, 1] - table[:, 2]))].T
    names, documents = np.unique(texts, return_inverse=True)
    return _Chains(begins, ends, documents, np.stack(np.divmod(names, BLOCK_TEXTS), 1), counts, is_used)


class _Reading:
    """Reads the documents that may have a longer passage than those read before, until none can."""

    def __init__(self, blocks: Sequence[Block], words: Words, chains: _Chains) -> None:
        from lifecycle.data.inspecting.compiled_index import link_windows

        self.words, self.is_whole = words, True
        self._blocks, self._chains = blocks, chains
        self._heads = np.empty(1 << (2 * len(words) - 1).bit_length(), np.int32)
        self._links = np.empty(len(words), np.int32)
        link_windows(words.hashes, PASSAGE, self._heads, self._links)
        self._best, self._rows = np.zeros((len(words), 2), np.int32), np.empty((len(words), 3), np.int32)
        self._reach = np.zeros(len(words), np.int32)
        self._is_read, self._read = np.zeros(len(chains.names), bool), dict[int, NDArray[np.int32]]()
        self._cost, self._steps = 0, MOST_STEPS
        self._read_longest()
        own = [np.insert(rows, 0, document, 1) for document, rows in self._read.items() if len(rows)]
        self._common = np.concatenate([np.empty((0, 4), np.int32), *own])  # (document, first word, length, place)

    def spans(self) -> list[Span]:
        """The spans that are in a document, but in no longer one that is."""
        begins, ends = self._common[:, 1], self._common[:, 1] + self._common[:, 2]
        order = np.lexsort((-ends, begins))
        begins, ends = begins[order], ends[order]
        longer = ends > np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
        return list(zip(begins[longer].tolist(), ends[longer].tolist(), strict=True))

    def num_with(self, span: Span) -> int:
        """How many documents may have a span."""
        return self._chains.num_with(span)

    def holders(self, span: Span) -> Iterator[tuple[Block, int, int]]:
        """Documents that have a span: (block, number in it, first word); first those that were read before."""
        documents, begins, lengths, _ = self._common.T
        known = (begins <= span[0]) & (begins + lengths >= span[1])
        _, firsts = np.unique(documents[known], return_index=True)
        for document, begin, _, place in self._common[known][firsts].tolist():
            yield *self._place(document), place + span[0] - begin
        others = self._chains.documents[self._chains.with_all_of(span)]
        for document in others[~np.isin(others, documents[known])].tolist():
            for begin, length, place in self._rows_of(document).tolist():
                if begin <= span[0] and begin + length >= span[1]:
                    yield *self._place(document), place + span[0] - begin
                    break

    def _read_longest(self) -> None:
        for (begin, end, low), (_, _, high) in pairwise(self._chains.groups.tolist()):
            if self._reach[begin] >= end:
                continue
            documents = self._chains.documents[low:high]
            for document in documents[~self._is_read[documents]].tolist():
                if self._reach[begin] >= end or not self.is_whole:
                    break
                self._rows_of(document)

    def _place(self, document: int) -> tuple[Block, int]:
        block, number = self._chains.names[document].tolist()
        return self._blocks[block], number

    def _rows_of(self, document: int) -> NDArray[np.int32]:
        """What a document has in common with the text: (first word, length, place); nothing of one that was not read
        before too much was."""
        from lifecycle.data.inspecting.compiled_index import common

        if self._is_read[document]:
            return self._read[document]
        block, number = self._place(document)
        self._cost += block.cost(number)
        if self._cost > MOST_READ or self._steps < 0:
            self.is_whole = False
            return self._rows[:0]
        others, room = words_of(block.text(number)), (self._heads, self._links, self._best, self._reach, self._rows)
        num, self._steps = common(self.words.hashes, others.hashes, PASSAGE, *room, self._steps)
        self._is_read[document], self._read[document] = True, self._rows[:num].copy()
        self.is_whole &= self._steps >= 0
        return self._read[document]


def _folded(data: NDArray[np.uint8]) -> bytes:
    """The letters of a text as they are compared."""
    found = letters()[np.frombuffer(_decoded(data).encode("utf-32-le"), "<u4")]
    return found[found > 0].tobytes()


def _decoded(data: NDArray[np.uint8]) -> str:
    """A piece of UTF-8; what is left of a character at its ends is dropped."""
    return data.tobytes().decode("utf-8", "ignore")
