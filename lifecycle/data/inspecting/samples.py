"""Samples: a few documents of each group, drawn by a hash of their ids, so that the same seed draws the same ones.

They are drawn from columns without texts; the texts of those drawn are read afterwards.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.documents import Split
from lifecycle.data.inspecting.selected import read_rows
from lifecycle.data.mixing import mixed

SHOWN_CHARS = 600  # of a sample's text

type Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Place:
    """A document by its split and its number there."""

    split: Split
    number: int


@dataclass(frozen=True)
class Sample:
    """A document as it is shown: `text` begins its text, which has `size` characters; `detail`: why it was removed."""

    id: str
    name: str  # source:path
    detail: str
    text: str
    size: int


class Smallest[Entry]:
    """Of each group, the `most` entries with the smallest keys, in the order of these; of equal keys the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: dict[Hashable, tuple[Keys, list[Entry]]] = {}

    def offer(self, group: Hashable, keys: Keys, entry: Callable[[int], Entry]) -> None:
        """Members of a group by their keys; `entry` makes those that are taken, by their places in `keys`."""
        known, entries = self._groups.get(group, (np.zeros(0, np.uint64), []))
        places = np.flatnonzero(keys < known[-1]) if len(known) == self._most else np.arange(len(keys))
        if not len(places):
            return
        places = places[np.argsort(keys[places], kind="stable")[: self._most]]
        merged = np.concatenate([known, keys[places]])
        order = np.argsort(merged, kind="stable")[: self._most]
        entries = [*entries, *map(entry, places.tolist())]
        self._groups[group] = merged[order], [entries[at] for at in order]

    def of(self, group: Hashable) -> list[Entry]:
        """The entries of a group."""
        return self._groups.get(group, (None, []))[1]

    def all(self) -> Iterator[Entry]:
        """The entries of all groups."""
        return chain.from_iterable(entries for _, entries in self._groups.values())


def draw_keys(ids: NDArray[np.uint64], seed: int) -> Keys:
    """A number for each id, [document, half] -> [document], in an order of its own for each seed."""
    return mixed(ids[:, 0] ^ mixed(np.array([seed], np.uint64)))


def read_samples(folder: Path, places: Iterable[Place]) -> Mapping[Place, Sample]:
    """The documents at these places."""
    numbers: defaultdict[Split, set[int]] = defaultdict(set)
    for place in places:
        numbers[place.split].add(place.number)
    samples: dict[Place, Sample] = {}
    for split, wanted in numbers.items():
        for number, row in read_rows(folder, split, wanted, ("id", "source", "path", "detail", "text")):
            name, text = f"{row['source']}:{row['path']}", row["text"]
            samples[Place(split, number)] = Sample(row["id"], name, row["detail"] or "", text[:SHOWN_CHARS], len(text))
    return samples
