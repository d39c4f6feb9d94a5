"""How much of each test item a text has: which items own an n-gram, and how many n-grams they have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.ngrams import Hashes
from lifecycle.data.selecting.gram_lookup import Match, mapped


@dataclass
class Owners:
    """N-grams of one length. The items that contain `hashes[i]` are `owners[first[i] : first[i + 1]]`."""

    hashes: Hashes
    first: NDArray[np.int64]
    owners: NDArray[np.int64]
    live: NDArray[np.bool_]  # parallel to owners; False for boilerplate
    sizes: NDArray[np.int64]  # live n-grams of each item

    @classmethod
    def of(cls, entries: Sequence[tuple[int, Hashes]], num_items: int) -> "Owners":
        """Of items, (number, n-grams) each, in the order of their numbers."""
        hashes = np.concatenate([grams for _, grams in entries])
        owners = np.concatenate([np.full(len(grams), number, np.int64) for number, grams in entries])
        order = np.argsort(hashes)  # of equal ones in any order; a stable sort takes three times as long
        hashes = hashes[order]
        first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
        sizes = np.bincount(owners, minlength=num_items)
        return cls(hashes[first], np.append(first, len(order)), owners[order], np.ones(len(order), bool), sizes)

    def drop(self, common: NDArray[np.bool_], of_items: NDArray[np.bool_]) -> None:
        """Marks common n-grams as boilerplate in the items selected by `of_items`; `common` is parallel to `hashes`."""
        self.live &= ~(np.repeat(common, np.diff(self.first)) & of_items[self.owners])
        self.sizes = np.bincount(self.owners[self.live], minlength=len(self.sizes))

    def is_live(self) -> NDArray[np.bool_]:
        """Whether each of `hashes` counts in some item."""
        return np.logical_or.reduceat(self.live, self.first[:-1])


class ItemShares:
    """What says how much of each item a text has, by the owners of n-grams of each length; `ngram` is the full one."""

    def __init__(self, owners: Mapping[int, Owners], ngram: int) -> None:
        self._owners, self._ngram = owners, ngram
        num_items = max((len(own.sizes) for own in owners.values()), default=0)
        self._counts = np.zeros(num_items, np.int64)  # of each item, zeros between calls

    def save(self, folder: Path) -> None:
        """Writes it for `load`."""
        np.save(folder / "owned-lengths.npy", np.array([self._ngram, *self._owners]))
        for n, own in self._owners.items():
            for name in ("first", "owners", "live", "sizes"):
                np.save(folder / f"{name}-{n}.npy", getattr(own, name))

    @classmethod
    def load(cls, folder: Path) -> "ItemShares":
        """What `save` has written, beside what `Lookup.save` has; its pages are shared by all processes."""
        ngram, *lengths = np.load(folder / "owned-lengths.npy").tolist()
        names = ("first", "owners", "live", "sizes")
        owners = {
            n: Owners(mapped(folder / f"{n}.npy"), *(mapped(folder / f"{name}-{n}.npy") for name in names))
            for n in lengths
        }
        return cls(owners, ngram)

    def of(self, match: Match) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
        """For each length of n-grams the items that have some in common with a text, and for each item the larger of
        the two sides' shares."""
        for n, positions in match.positions.items():
            items, common = self._common(self._owners[n], positions)
            if not len(items):
                continue
            shares = common / self._owners[n].sizes[items]
            yield n, items, np.maximum(shares, common / match.num_own) if n == self._ngram else shares

    def _common(self, own: Owners, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items with live n-grams at these positions, ascending, and of each how many."""
        from lifecycle.data.compiled_words import count_owners

        items = np.empty(len(self._counts), np.int64)
        items = items[: count_owners(positions, own.first, own.owners, own.live, self._counts, items)]
        items.sort()
        counts = self._counts[items]
        self._counts[items] = 0
        return items, counts
