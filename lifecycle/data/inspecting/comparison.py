"""Two selections compared: which documents entered and left the training text, which moved otherwise, which are cut
differently, and samples.

Documents are the same if their ids are, hashes of source and text: one whose text a setting changes has left, and
another one has entered. Copies share an id: the i-th best fate of an id on one side is compared with the i-th best on
the other. What must hold: memory does not grow with the documents. Their records, 44 bytes each, are put into temporary
files by their ids, and compared file by file.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.recut import Pair, Recut, cut_marks, read_recut
from lifecycle.data.inspecting.samples import Keys, Place, Sample, Smallest, draw_keys, read_samples
from lifecycle.data.inspecting.selected import Part, id_numbers, num_documents, read_parts

IN_FILE = 1 << 18  # records, about
BUFFERED = 1 << 17  # records until they are put into the files
SAMPLED_MOVES = 30  # the largest
RECORD = np.dtype(
    [("id", "<u8", 2), ("number", "<u8"), ("cut", "<u8"), ("bytes", "<u4"), ("source", "<u4"), ("fate", "<u4")]
)  # `number`: of the document in its split; `cut`: of `cut_marks`; `fate` and `source`: numbers of `_Names`

_ABSENT, _KEPT, _HELDOUT = range(3)  # numbers of fates; those of removals are larger

type Records = NDArray[np.void]
type Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")


class Fate(NamedTuple):
    """What became of a document; `split` is None for one that is not there."""

    split: Split | None = None
    step: str | None = None
    reason: str | None = None


type Move = tuple[Fate, Fate]  # before, after


@dataclass(frozen=True)
class Amount:
    """Documents, and the bytes of their texts."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.documents + other.documents, self.bytes + other.bytes)


class Moved(NamedTuple):
    """Documents of a source that went from one fate to another one, or stayed."""

    source: str
    before: Fate
    after: Fate

    @property
    def move(self) -> Move:
        """Both fates."""
        return self.before, self.after

    @property
    def has_changed(self) -> bool:
        """Whether the fates differ."""
        return self.before != self.after

    @property
    def has_entered(self) -> bool:
        """Whether they are training text now, and were not before."""
        return self.after.split == "kept" != self.before.split

    @property
    def has_left(self) -> bool:
        """Whether they were training text, and are no more."""
        return self.before.split == "kept" != self.after.split


@dataclass(frozen=True)
class Comparison:
    """How many documents went where, and samples of the largest moves; by source what stayed and is cut differently, in
    A and in B, and samples of that."""

    amounts: Mapping[Moved, Amount]
    samples: Mapping[Move, Sequence[Sample]]
    recut: Mapping[str, tuple[Amount, Amount]]
    recut_samples: Sequence[Recut]

    def by[Key](self, key: Callable[[Moved], Key | None]) -> dict[Key, Amount]:
        """The amounts with the same key, the largest first; without those whose key is None."""
        sums: dict[Key, Amount] = {}
        for moved, amount in self.amounts.items():
            if (own := key(moved)) is not None:
                sums[own] = sums.get(own, Amount()) + amount
        return dict(sorted(sums.items(), key=lambda entry: (-entry[1].documents, str(entry[0]))))

    def total(self, is_counted: Callable[[Moved], bool]) -> Amount:
        """The sum of some amounts."""
        return sum((amount for moved, amount in self.amounts.items() if is_counted(moved)), Amount())


def compare(a: Path, b: Path, num_samples: int, progress: Progress) -> Comparison:
    """Compares the documents of two artifacts of stage `documents`; `num_samples` of each move."""
    sizes = [num_documents(folder) for folder in (a, b)]
    num_files = math.ceil((max(sizes) or 1) / IN_FILE)
    names, moves, done = _Names(), _Moves(num_samples), 0
    progress.start("reading documents", sum(sizes))
    with tempfile.TemporaryDirectory(prefix="lifecycle-diff-") as scratch:
        for side, folder in zip(SIDES, (a, b), strict=True):
            files = _Files(Path(scratch), side, num_files)
            for part in read_parts(folder, ("id", "source", "text_bytes", "step", "reason", "cuts")):
                files.add(names.records(part))
                done += part.rows.num_rows
                progress.update(done)
            files.write()
        progress.start("comparing", num_files)
        for number in range(num_files):
            moves.add(*_aligned(*(np.fromfile(_path(Path(scratch), side, number), RECORD) for side in SIDES)))
            progress.update(number + 1)
    compared = Comparison(moves.amounts(names), {}, moves.recut(names), read_recut(a, b, moves.recut_pairs()))
    largest = list(compared.by(lambda moved: moved.move if moved.has_changed else None))[:SAMPLED_MOVES]
    return replace(compared, samples=moves.samples({"a": a, "b": b}, names, largest))


class _Names:
    """The numbers of sources and fates, the same on both sides; better fates have smaller ones."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}
        self.fates = {Fate(): _ABSENT, Fate("kept"): _KEPT, Fate("heldout"): _HELDOUT}

    def records(self, part: Part) -> Records:
        """The records of some documents."""
        rows = part.rows
        records = np.zeros(rows.num_rows, RECORD)
        records["id"], records["bytes"] = id_numbers(rows), rows["text_bytes"].to_numpy()
        records["number"] = np.arange(part.first, part.first + rows.num_rows)
        records["cut"] = cut_marks(rows["cuts"])
        records["source"] = _numbers(rows["source"], self.sources, lambda name: name)
        if part.split == "removed":
            both = pa.StructArray.from_arrays([rows["step"], rows["reason"]], ["step", "reason"])
            records["fate"] = _numbers(both, self.fates, lambda verdict: Fate("removed", **verdict))
        else:
            records["fate"] = self.fates[Fate(part.split)]
        return records


def _numbers(values: pa.Array, numbers: dict[Any, int], key: Callable[[Any], Any]) -> list[int]:
    return [numbers.setdefault(key(value), len(numbers)) for value in values.to_pylist()]


class _Files:
    """Appends the records of one side to files, by their ids."""

    def __init__(self, folder: Path, side: Side, num_files: int) -> None:
        self._paths = [_path(folder, side, number) for number in range(num_files)]
        self._pending: list[Records] = []

    def add(self, records: Records) -> None:
        """Takes records in."""
        self._pending.append(records)
        if sum(map(len, self._pending)) >= BUFFERED:
            self.write()

    def write(self) -> None:
        """Writes those that are not written yet."""
        records = np.concatenate([np.zeros(0, RECORD), *self._pending])
        numbers = records["id"][:, 0] % np.uint64(len(self._paths))
        for number, path in enumerate(self._paths):
            with open(path, "ab") as file:
                records[numbers == number].tofile(file)
        self._pending = []


def _path(folder: Path, side: Side, number: int) -> Path:
    return folder / f"{side}-{number:03d}"


def _aligned(a: Records, b: Records) -> tuple[Records, Records]:
    """The records of both sides with one place for each document, all zeros where a side does not have it."""
    records = np.concatenate([a, b])
    is_b = np.arange(len(records)) >= len(a)
    order = np.lexsort((records["cut"], records["fate"], is_b, records["id"][:, 1], records["id"][:, 0]))
    begins = _changes(records["id"][order, 0], records["id"][order, 1], is_b[order])
    copy = np.zeros(len(records), np.int64)  # of the documents with its id on its side, the how-manieth it is
    copy[order] = np.arange(len(order)) - np.flatnonzero(begins)[np.cumsum(begins) - 1]
    order = np.lexsort((is_b, copy, records["id"][:, 1], records["id"][:, 0]))
    begins = _changes(records["id"][order, 0], records["id"][order, 1], copy[order])
    places, of_b = np.cumsum(begins) - 1, is_b[order]
    before, after = np.zeros(begins.sum(), RECORD), np.zeros(begins.sum(), RECORD)
    before[places[~of_b]], after[places[of_b]] = records[order[~of_b]], records[order[of_b]]
    return before, after


def _changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each row differs from the one before it in any of these columns."""
    changes = np.ones(len(columns[0]), bool)
    changes[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changes


class _Moves:
    """Counts and draws documents by what became of them on both sides."""

    def __init__(self, num_samples: int) -> None:
        self._amounts: dict[tuple[int, int, int], Amount] = {}  # by source and fates
        self._drawn: Smallest[tuple[Side, int]] = Smallest(num_samples)  # by fates: side, and number in its split there
        self._recut: dict[int, tuple[Amount, Amount]] = {}  # by source
        self._drawn_recut: Smallest[Pair] = Smallest(num_samples)

    def add(self, before: Records, after: Records) -> None:
        """Takes in documents, each at the same place of both sides."""
        documents = np.where(after["fate"] != _ABSENT, after, before)
        kinds = [kind.astype(np.int64) for kind in (documents["source"], before["fate"], after["fate"])]
        shape = tuple(int(kind.max(initial=0)) + 1 for kind in kinds)
        codes, inverse, counts = np.unique(np.ravel_multi_index(kinds, shape), return_inverse=True, return_counts=True)
        sizes = np.bincount(inverse, documents["bytes"], len(codes))
        found = np.column_stack([*np.unravel_index(codes, shape), counts, sizes.astype(np.int64)])
        for source, own_before, own_after, num, size in found.tolist():
            kind = (source, own_before, own_after)
            self._amounts[kind] = self._amounts.get(kind, Amount()) + Amount(num, size)
        drawn = draw_keys(documents["id"], 0)
        self._draw(before, after, drawn)
        self._add_recut(before, after, drawn)

    def _add_recut(self, before: Records, after: Records, keys: Keys) -> None:
        fate = before["fate"]
        is_text = (fate == _KEPT) | (fate == _HELDOUT)
        places = np.flatnonzero(is_text & (fate == after["fate"]) & (before["cut"] != after["cut"]))
        for source in np.unique(before["source"][places]).tolist():
            own = places[before["source"][places] == source]
            sums = (Amount(len(own), int(side["bytes"][own].sum(dtype=np.int64))) for side in (before, after))
            known = self._recut.get(source, (Amount(), Amount()))
            of_a, of_b = (amount + more for amount, more in zip(known, sums, strict=True))
            self._recut[source] = of_a, of_b

        def pair(at: int) -> Pair:
            row = places[at]
            split: Split = "kept" if fate[row] == _KEPT else "heldout"
            return Pair(split, int(before["number"][row]), int(after["number"][row]))

        self._drawn_recut.offer(None, keys[places], pair)

    def _draw(self, before: Records, after: Records, keys: Keys) -> None:
        changed = np.flatnonzero(before["fate"] != after["fate"])
        moves = before["fate"][changed].astype(np.int64) << 32 | after["fate"][changed]
        for move in np.unique(moves).tolist():
            own, fates = changed[moves == move], divmod(move, 1 << 32)
            is_b = fates[1] > _HELDOUT or fates[0] == _ABSENT  # where it is removed, a rule says why
            self._drawn.offer(
                fates, keys[own], _entry("b" if is_b else "a", (after if is_b else before)["number"][own])
            )

    def amounts(self, names: _Names) -> dict[Moved, Amount]:
        """How many documents went where."""
        sources, fates = list(names.sources), list(names.fates)
        return {
            Moved(sources[source], fates[before], fates[after]): amount
            for (source, before, after), amount in self._amounts.items()
        }

    def recut(self, names: _Names) -> dict[str, tuple[Amount, Amount]]:
        """By source what is cut differently."""
        sources = list(names.sources)
        return {sources[source]: amounts for source, amounts in sorted(self._recut.items())}

    def recut_pairs(self) -> list[Pair]:
        """Some documents that are cut differently."""
        return self._drawn_recut.of(None)

    def samples(self, folders: Mapping[Side, Path], names: _Names, moves: Iterable[Move]) -> dict[Move, list[Sample]]:
        """Samples of these moves, read from the sides' folders."""
        drawn: dict[Move, list[tuple[Side, Place]]] = {}
        for move in moves:
            splits: dict[Side, Split | None] = {"a": move[0].split, "b": move[1].split}
            entries = self._drawn.of((names.fates[move[0]], names.fates[move[1]]))
            drawn[move] = [(side, Place(split, number)) for side, number in entries if (split := splits[side])]
        read = {
            side: read_samples(folder, [place for of in drawn.values() for own, place in of if own == side])
            for side, folder in folders.items()
        }
        return {move: [read[side][place] for side, place in places] for move, places in drawn.items()}


def _entry(side: Side, numbers: NDArray[np.uint64]) -> Callable[[int], tuple[Side, int]]:
    return lambda at: (side, int(numbers[at]))
