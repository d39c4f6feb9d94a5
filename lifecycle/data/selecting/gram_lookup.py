"""Which of some known word n-grams a text contains.

A text's n-grams are looked up in a table of bits first: one in sixteen bits is set, and what is not there ends here.
What is left is found in sorted hashes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.mixing import MIX
from lifecycle.data.ngrams import Hashes, bare_characters, distinct, ngram_hashes, word_hashes

_BITS_EACH = 16  # of the table, for each n-gram


@dataclass(frozen=True)
class Match:
    """The n-grams that a text has in common with those that are known: positions among these, by n-gram length.

    `num_own` is the number of the text's distinct n-grams of full length.
    """

    positions: dict[int, NDArray[np.int64]]
    num_own: int


@dataclass(frozen=True)
class Lookup:
    """Sorted hashes of n-grams by length, and a table of bits for each length."""

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
        return cls({n: mapped(folder / f"{n}.npy") for n in lengths}, mapped(folder / "bits.npy"), ngram)

    def match(self, text: str) -> Match | None:
        """The n-grams that a text shares; None if it shares none."""
        words = word_hashes(text, bare_characters())
        positions = {n: self._found(words, n, bits) for (n, bits) in zip(self.hashes, self.bits, strict=True)}
        if not any(map(len, positions.values())):
            return None
        return Match(positions, len(distinct(ngram_hashes(words, self.ngram))))

    def _found(self, words: Hashes, n: int, bits: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Positions in the hashes of the n-grams of these words, if they are there."""
        from lifecycle.data.compiled_words import find_grams

        shift, places = 64 - (8 * len(bits) - 1).bit_length(), np.empty(len(words), np.int64)
        return distinct(places[: find_grams(words, n, bits, shift, self.hashes[n], places)])


def mapped(path: Path) -> NDArray[Any]:
    """An array of a file, of which processes share the pages; as a plain one: Numba takes 30 times as long to look at a
    `memmap`."""
    return np.asarray(np.load(path, mmap_mode="r"))
