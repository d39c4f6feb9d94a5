"""The distinct word n-grams of all test items, and which of them a text contains.

A text's n-grams are looked up in a table of bits first: one in sixteen bits is set, and what is not there ends here.
What is left is found in sorted hashes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.mixing import MIX
from lifecycle.data.ngrams import Hashes, distinct, ngram_hashes, word_hashes
from lifecycle.data.selecting.eval_items import HELDOUT, TestItem, joined_words

# An item shorter than the n-gram is compared as one n-gram. Below eight words (a question such as "What is the capital
# of France?") its presence in a text proves nothing, so it is not compared, only counted.
MIN_ITEM_WORDS = 8
# As in GPT-3, n-grams that more documents than this have in common are boilerplate (licences, page frames, tables of
# the same kind). They are ignored in held-out documents, which come from the same sources, but not in evaluation
# rows: a question that occurs in twenty training documents is the worst case, not a harmless one.
MAX_DOCUMENTS = 10
_BITS_EACH = 16  # of the table, for each n-gram


@dataclass(frozen=True)
class Hit:
    """A test item that a document overlaps, the share, and the words in each n-gram that they were compared by."""

    item: TestItem
    share: float
    ngram: int


@dataclass(frozen=True)
class Match:
    """The n-grams that a text has in common with the items: positions in the index, by n-gram length.

    `num_own` is the number of the text's distinct n-grams of full length.
    """

    positions: dict[int, NDArray[np.int64]]
    num_own: int


@dataclass(frozen=True)
class Lookup:
    """What finds a text's n-grams in an index: sorted hashes by length, and a table of bits for each length."""

    hashes: dict[int, Hashes]
    bits: NDArray[np.uint8]  # [lengths, bytes], the lengths in ascending order
    ngram: int

    @classmethod
    def of(cls, hashes: Mapping[int, Hashes], ngram: int) -> "Lookup":
        """With the bits of these n-grams."""
        ordered = {n: hashes[n] for n in sorted(hashes)}
        most = max(map(len, ordered.values()), default=1)
        num_bits = max(10, (_BITS_EACH * most - 1).bit_length())
        bits = np.zeros((len(ordered), 1 << (num_bits - 3)), np.uint8)
        for row, own in zip(bits, ordered.values(), strict=True):
            upper = (own * MIX) >> np.uint64(64 - num_bits)
            np.bitwise_or.at(row, upper >> np.uint64(3), np.uint8(1) << (upper & np.uint64(7)).astype(np.uint8))
        return cls(ordered, bits, ngram)

    def save(self, folder: Path) -> None:
        """Writes it for `load`."""
        np.save(folder / "bits.npy", self.bits)
        np.save(folder / "lengths.npy", np.array([self.ngram, *self.hashes]))
        for n, own in self.hashes.items():
            np.save(folder / f"{n}.npy", own)

    @classmethod
    def load(cls, folder: Path) -> "Lookup":
        """What `save` has written; its pages are shared by all processes that load it."""
        ngram, *lengths = np.load(folder / "lengths.npy").tolist()
        return cls({n: _mapped(folder / f"{n}.npy") for n in lengths}, _mapped(folder / "bits.npy"), ngram)

    def match(self, text: str) -> Match | None:
        """The n-grams that a text shares with any item; None if it shares none."""
        words = word_hashes(text)
        positions = {n: self._found(words, n, bits) for (n, bits) in zip(self.hashes, self.bits, strict=True)}
        if not any(map(len, positions.values())):
            return None
        return Match(positions, len(distinct(ngram_hashes(words, self.ngram))))

    def _found(self, words: Hashes, n: int, bits: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Positions in the hashes of the n-grams of these words, if they are there."""
        from lifecycle.data.compiled_words import find_grams

        shift, places = 64 - (8 * len(bits) - 1).bit_length(), np.empty(len(words), np.int64)
        return distinct(places[: find_grams(words, n, bits, shift, self.hashes[n], places)])


def _mapped(path: Path) -> NDArray[Any]:
    # as a plain array: Numba takes 30 times as long to look at a `memmap`
    return np.asarray(np.load(path, mmap_mode="r"))


class OverlapIndex:
    """The n-grams of all items, and which items contain each. Behind the items are those of `joined_words`."""

    def __init__(self, items: Sequence[TestItem], ngram: int) -> None:
        self.items = [*items, *joined_words(items)]
        self.ngram = ngram
        too_short = np.zeros(len(self.items), bool)
        grams: dict[int, list[tuple[int, Hashes]]] = {}
        for number, item in enumerate(self.items):
            words = word_hashes(item.text)
            n = min(ngram, len(words))
            if n < min(MIN_ITEM_WORDS, ngram):
                too_short[number] = True
            else:
                grams.setdefault(n, []).append((number, distinct(ngram_hashes(words, n))))
        self.too_short = too_short[: len(items)]
        self._tables = {n: _Table.of(entries, len(self.items)) for n, entries in grams.items()}
        self._is_heldout = np.array([item.kind == HELDOUT for item in self.items], bool)
        self.lookup = Lookup.of({n: table.hashes for n, table in self._tables.items()}, ngram)

    def drop_boilerplate(self, matches: Iterable[Match]) -> None:
        """Drops from the held-out items all n-grams that occur in more than `MAX_DOCUMENTS` of the texts."""
        counts = {n: np.zeros(len(table.hashes), np.int64) for n, table in self._tables.items()}
        for match in matches:
            for n, positions in match.positions.items():
                counts[n][positions] += 1
        for n, table in self._tables.items():
            table.drop(counts[n] > MAX_DOCUMENTS, self._is_heldout)

    def live_lookup(self) -> Lookup:
        """What finds the n-grams that count: those that are no boilerplate in some item."""
        tables = {n: table.hashes[table.is_live()] for n, table in self._tables.items()}
        return Lookup.of(tables, self.ngram)

    def worst(self, match: Match) -> Hit | None:
        """The item with the largest share in common with a text; for each item, the larger of the two sides' shares."""
        best: Hit | None = None
        for n, items, shares in self._shares(match):
            at = int(shares.argmax())
            if best is None or shares[at] > best.share:
                best = Hit(self.items[items[at]], float(shares[at]), n)
        return best

    def hits(self, match: Match, min_overlap: float) -> list[Hit]:
        """The items with at least this share in common with a text, the largest first; of a row's texts, and of a text
        with and without its punctuation, the one with the largest."""
        found = [
            Hit(self.items[items[at]], float(shares[at]), n)
            for n, items, shares in self._shares(match)
            for at in np.flatnonzero(shares >= min_overlap).tolist()
        ]
        largest: dict[tuple[str, tuple[str, ...]], Hit] = {}
        for hit in sorted(found, key=lambda hit: -hit.share):
            largest.setdefault((hit.item.name, hit.item.tasks), hit)
        return list(largest.values())

    def common(self, match: Match, n: int) -> Hashes:
        """The hashes of a match's n-grams of this length."""
        return self._tables[n].hashes[match.positions[n]]

    def _shares(self, match: Match) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
        """For each length of n-grams the items that have some in common with a text, and the share of each."""
        for n, positions in match.positions.items():
            table = self._tables[n]
            items, common = table.count(positions)
            if not len(items):
                continue
            shares = common / table.sizes[items]
            yield n, items, np.maximum(shares, common / match.num_own) if n == self.ngram else shares


@dataclass
class _Table:
    """N-grams of one length. The items that contain `hashes[i]` are `owners[first[i] : first[i + 1]]`."""

    hashes: Hashes
    first: NDArray[np.int64]
    owners: NDArray[np.int64]
    live: NDArray[np.bool_]  # parallel to owners; False for boilerplate
    sizes: NDArray[np.int64]  # live n-grams of each item
    counts: NDArray[np.int64]  # of each item, zeros between calls of `count`

    @classmethod
    def of(cls, entries: list[tuple[int, Hashes]], num_items: int) -> "_Table":
        hashes = np.concatenate([grams for _, grams in entries])
        owners = np.concatenate([np.full(len(grams), number, np.int64) for number, grams in entries])
        order = np.lexsort((owners, hashes))
        distinct, first = np.unique(hashes[order], return_index=True)
        sizes = np.bincount(owners, minlength=num_items)
        return cls(
            distinct,
            np.append(first, len(order)),
            owners[order],
            np.ones(len(order), bool),
            sizes,
            np.zeros_like(sizes),
        )

    def drop(self, common: NDArray[np.bool_], of_items: NDArray[np.bool_]) -> None:
        """Marks common n-grams as boilerplate in the items selected by `of_items`; `common` is parallel to `hashes`."""
        self.live &= ~(np.repeat(common, np.diff(self.first)) & of_items[self.owners])
        self.sizes = np.bincount(self.owners[self.live], minlength=len(self.sizes))

    def is_live(self) -> NDArray[np.bool_]:
        """Whether each of `hashes` counts in some item."""
        return np.logical_or.reduceat(self.live, self.first[:-1])

    def count(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items with live n-grams at these positions, ascending, and of each how many."""
        from lifecycle.data.compiled_words import count_owners

        items = np.empty(len(self.counts), np.int64)
        items = items[: count_owners(positions, self.first, self.owners, self.live, self.counts, items)]
        items.sort()
        counts = self.counts[items]
        self.counts[items] = 0
        return items, counts
