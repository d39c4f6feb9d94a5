"""The distinct word n-grams of all test items, and which items contain each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.ngrams import Hashes, bare_characters, distinct, ngram_hashes, word_hashes
from lifecycle.data.selecting.eval_items import HELDOUT, TestItem, joined_words
from lifecycle.data.selecting.gram_lookup import Lookup, Match
from lifecycle.data.selecting.item_shares import ItemShares, Owners

# An item shorter than the n-gram is compared as one n-gram. Below eight words (a question such as "What is the capital
# of France?") its presence in a text proves nothing, so it is not compared, only counted.
MIN_ITEM_WORDS = 8
# As in GPT-3, n-grams that more documents than this have in common are boilerplate (licences, page frames, tables of
# the same kind). They are ignored in held-out documents, which come from the same sources, but not in evaluation
# rows: a question that occurs in twenty training documents is the worst case, not a harmless one.
MAX_DOCUMENTS = 10


class Overlap(NamedTuple):
    """An item, by number, that a text has a share of in common, and the words in each n-gram that says so."""

    item: int
    share: float
    ngram: int


@dataclass(frozen=True)
class Hit:
    """A test item that a document overlaps, the share, and the words in each n-gram that they were compared by."""

    item: TestItem
    share: float
    ngram: int


class OverlapIndex:
    """The n-grams of all items, and which items contain each. Behind the items are those of `joined_words`."""

    def __init__(self, items: Sequence[TestItem], ngram: int) -> None:
        self.items = [*items, *joined_words(items)]
        self.ngram = ngram
        too_short = np.zeros(len(self.items), bool)
        grams: dict[int, list[tuple[int, Hashes]]] = {}
        for number, item in enumerate(self.items):
            words = word_hashes(item.text, bare_characters())
            n = min(ngram, len(words))
            if n < min(MIN_ITEM_WORDS, ngram):
                too_short[number] = True
            else:
                grams.setdefault(n, []).append((number, distinct(ngram_hashes(words, n))))
        self.too_short = too_short[: len(items)]
        self._owners = {n: Owners.of(entries, len(self.items)) for n, entries in grams.items()}
        self.lookup = Lookup.of({n: own.hashes for n, own in self._owners.items()}, ngram)
        self.shares = ItemShares(self._owners, ngram)

    def drop_boilerplate(self, positions: Iterable[Mapping[int, NDArray[np.int64]]]) -> None:
        """Drops from the held-out items all n-grams that occur in more than `MAX_DOCUMENTS` texts; `positions`: what
        the matches of some texts have, by n-gram length."""
        counts = {n: np.zeros(len(own.hashes), np.int64) for n, own in self._owners.items()}
        for found in positions:
            for n, own in found.items():
                np.add.at(counts[n], own, 1)
        is_heldout = np.array([item.kind == HELDOUT for item in self.items], bool)
        for n, own in self._owners.items():
            own.drop(counts[n] > MAX_DOCUMENTS, is_heldout)

    def live_lookup(self) -> Lookup:
        """What finds the n-grams that count: those that are no boilerplate in some item."""
        return Lookup.of({n: own.hashes[own.is_live()] for n, own in self._owners.items()}, self.ngram)

    def worst(self, match: Match) -> Hit | None:
        """The item with the largest share in common with a text."""
        best: Hit | None = None
        for n, items, shares in self.shares.of(match):
            at = int(shares.argmax())
            if best is None or shares[at] > best.share:
                best = Hit(self.items[items[at]], float(shares[at]), n)
        return best

    def hits(self, found: Iterable[Overlap]) -> list[Hit]:
        """The items that a text overlaps, the largest share first; of a row's texts, and of a text with and without its
        punctuation, the one with the largest."""
        largest: dict[tuple[str, tuple[str, ...]], Hit] = {}
        for number, share, ngram in sorted(found, key=lambda overlap: -overlap.share):
            item = self.items[number]
            largest.setdefault((item.name, item.tasks), Hit(item, share, ngram))
        return list(largest.values())

    def common(self, match: Match, n: int) -> Hashes:
        """The hashes of a match's n-grams of this length."""
        return self._owners[n].hashes[match.positions[n]]


def overlaps(shares: ItemShares, match: Match, least: float) -> Iterator[Overlap]:
    """The items that have at least this share in common with a text."""
    for n, items, own in shares.of(match):
        for at in np.flatnonzero(own >= least).tolist():
            yield Overlap(int(items[at]), float(own[at]), n)
