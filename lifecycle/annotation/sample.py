"""A sample of a run's kept documents: of each source its share, and one at least.

Documents are drawn by a hash of their ids. What must hold: the same seed draws the same ones, and a larger sample has
those of a smaller one, so that what was asked of them is not asked again.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.data.inspecting.samples import Smallest, draw_keys
from lifecycle.data.inspecting.selected import id_numbers, read_parts, read_rows

COLUMNS = ("id", "content", "source", "path", "url", "license", "text")


def drawn_numbers(folder: Path, most: int, seed: int) -> list[int]:
    """The numbers, in order, of at most `most` of the documents that an artifact of stage `documents` keeps."""
    smallest, counts = Smallest[int](most), Counter[str]()
    for part in read_parts(folder, ("id", "source"), ("kept",)):
        keys, sources = draw_keys(id_numbers(part.rows), seed), part.rows["source"].to_numpy(zero_copy_only=False)
        for source in np.unique(sources):
            places = np.flatnonzero(sources == source)
            counts[source] += len(places)
            smallest.offer(source, keys[places], lambda at, own=part.first + places: int(own[at]))
    return sorted(number for source, size in shares(counts, most).items() for number in smallest.of(source)[:size])


def shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """How many of `most` come from each source. Of a source with `n` documents, number `i` is due at `i / n`, so each
    source has its first before any has its second, and the others follow in proportion."""
    names = sorted(counts)
    due = [np.arange(min(counts[name], most)) / counts[name] for name in names]
    owners = np.repeat(np.arange(len(names)), [len(own) for own in due])
    first = owners[np.argsort(np.concatenate(due), kind="stable")[:most]] if names else owners
    return dict(zip(names, np.bincount(first, minlength=len(names)).tolist(), strict=True))


def drawn_documents(folder: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """These of the kept documents, in order, with their `COLUMNS`."""
    return (row for _, row in read_rows(folder, "kept", numbers, COLUMNS))
