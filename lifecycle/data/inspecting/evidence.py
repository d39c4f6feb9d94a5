"""What deduplication says of the documents that it removed: groups of duplicates.

Its details are read as `dedup.py` writes them; this file alone knows these texts.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.inspecting.selected import read_where
from lifecycle.data.selecting.dedup import ADDRESS, EXACT, NEAR

MEMBERS = 5  # shown of a group
_SAME = re.compile(r"same (?:text|address) as (.*)\Z", re.DOTALL)
_NEAR = re.compile(r"Jaccard ([\d.]+) with (.*?)(?:; kept of its group: (.*))?\Z", re.DOTALL)


@dataclass(frozen=True)
class Group:
    """Documents of which one stays: `kept`, how many were removed, and the first of these."""

    kept: str
    num_removed: int
    members: tuple[str, ...]


class DuplicateGroups:
    """The groups of duplicates. Memory: 8 bytes for each removed duplicate."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, rows: pa.RecordBatch) -> None:
        """Counts removed documents, those that are no duplicates among them."""
        found = [_hash(kept) for kept in _kept_of(rows) if kept is not None]
        self._hashes.append(np.array(found, np.uint64))

    def sizes(self) -> dict[int, int]:
        """How many groups have lost how many documents."""
        return dict(sorted(Counter(self._counted()[1].tolist()).items()))

    def largest(self, folder: Path, most: int) -> list[Group]:
        """The groups that lost the most documents; `folder`: the artifact with the removed ones."""
        hashes, counts = self._counted()
        top = np.lexsort((hashes, -counts))[:most]
        wanted = {int(hashes[at]): int(counts[at]) for at in top}
        if not wanted:
            return []

        def is_wanted(rows: pa.RecordBatch, first: int) -> NDArray[np.bool_]:
            del first
            return np.array([kept is not None and _hash(kept) in wanted for kept in _kept_of(rows)], bool)

        members: dict[str, list[str]] = {}
        for row in read_where(folder, "removed", ("step", "detail"), is_wanted, ("source", "path", "step", "detail")):
            of_group = members.setdefault(_kept(row["step"], row["detail"]) or "", [])
            if len(of_group) < MEMBERS:
                near = _NEAR.match(row["detail"])
                of_group.append(f"{row['source']}:{row['path']}" + (f" (Jaccard {near[1]})" if near else ""))
        groups = [Group(kept, wanted[_hash(kept)], tuple(some)) for kept, some in members.items()]
        return sorted(groups, key=lambda group: (-group.num_removed, group.kept))

    def _counted(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *self._hashes]), return_counts=True)


def _kept_of(rows: pa.RecordBatch) -> Iterator[str | None]:
    return map(_kept, rows["step"].to_pylist(), rows["detail"].to_pylist())


def _kept(step: str, detail: str) -> str | None:
    """The name of the document that stays of a duplicate's group; None for what is no duplicate."""
    if step in (ADDRESS, EXACT) and (found := _SAME.match(detail)):
        return found[1]
    if step == NEAR and (found := _NEAR.match(detail)):
        return found[3] or found[2]
    return None


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
