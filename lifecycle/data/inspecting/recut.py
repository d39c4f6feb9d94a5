"""Documents that two selections both have, and that are cut differently: what only one of them cuts.

Cuts are places in the text as it was tagged, which both have. Which step cuts a passage, and into how many parts, makes
no difference.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.documents import Split
from lifecycle.data.inspecting.selected import read_rows
from lifecycle.data.selecting.cuts import merged

TEXTS: tuple[Split, ...] = ("kept", "heldout")  # the splits whose texts are cut

type Rows = Mapping[int, dict[str, Any]]


class Passage(NamedTuple):
    """Characters of a document that are cut, and the step that cuts them."""

    step: str
    begin: int
    end: int
    text: str


class Pair(NamedTuple):
    """A document by its split on both sides, and its numbers there."""

    split: Split
    a: int
    b: int


@dataclass(frozen=True)
class Recut:
    """A document, with what only A cuts of it, and only B."""

    id: str
    name: str  # source:path
    only_a: tuple[Passage, ...]
    only_b: tuple[Passage, ...]


def cut_marks(cuts: pa.Array) -> NDArray[np.uint64]:
    """A hash of the characters that are cut from each document; 0 for none."""
    marks = np.zeros(len(cuts), np.uint64)
    places = cuts.values
    begins, ends = (places.field(name).to_numpy(zero_copy_only=False) for name in ("begin", "end"))
    offsets = cuts.offsets.to_numpy()
    for at in np.flatnonzero(np.diff(offsets)).tolist():
        own = slice(offsets[at], offsets[at + 1])
        spans = merged(np.stack([begins[own], ends[own]], axis=1).astype("<i8"))
        marks[at] = int.from_bytes(blake2b(spans.tobytes(), digest_size=8).digest(), "little") or 1
    return marks


def read_recut(a: Path, b: Path, pairs: Sequence[Pair]) -> list[Recut]:
    """What is cut differently of some documents."""
    found: list[Recut] = []
    rows = {
        (side, split): _read(folder, split, (getattr(pair, side) for pair in pairs if pair.split == split))
        for side, folder in (("a", a), ("b", b))
        for split in TEXTS
    }
    for pair in pairs:
        before, after = rows["a", pair.split][pair.a], rows["b", pair.split][pair.b]
        cuts = [[Passage(**cut) for cut in row["cuts"] or ()] for row in (before, after)]
        only = (tuple(_only(own, others)) for own, others in (cuts, cuts[::-1]))
        found.append(Recut(after["id"], f"{after['source']}:{after['path']}", *only))
    return found


def _read(folder: Path, split: Split, numbers: Iterable[int]) -> Rows:
    return dict(read_rows(folder, split, set(numbers), ("id", "source", "path", "cuts")))


def _only(cuts: Iterable[Passage], others: Sequence[Passage]) -> Iterator[Passage]:
    """The parts of passages that are in no other one."""
    taken = merged(np.array([(other.begin, other.end) for other in others], np.int64).reshape(-1, 2)).tolist()
    for cut in cuts:
        at = cut.begin
        for begin, end in [*taken, (cut.end, cut.end)]:
            if at < min(begin, cut.end):
                stop = min(begin, cut.end)
                yield Passage(cut.step, at, stop, cut.text[at - cut.begin : stop - cut.begin])
            at = max(at, end)
