"""Where the rows of an artifact come from, and how often each is learned in an epoch.

Beside `<kind>-<side>.jsonl`, `<kind>-<side>.origins.json` has for each row the number of the user's file (-1: made from
docstrings, or by a task) and its line there; the files' names are in the stats, so that the artifact's content does not
depend on folders.

With weights, an epoch has of each file its share exactly, to a row: the file with the most rows for its weight is in it
once, and the rows of the others are repeated in order until they have their shares. Nothing is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lifecycle.core.files import write_text
from lifecycle.text.row_files import RowError

GENERATED = -1  # in the place of a file's number: of a row from no file of the user's
MOST_PASSES = 100  # of an epoch's rows to the rows that there are


@dataclass(frozen=True)
class Origins:
    """For each row, in order, the number of its file and its line there; the files' names and weights."""

    path: Path
    places: Sequence[tuple[int, int]]
    names: Sequence[str] = ()
    weights: Sequence[float] = ()

    def name(self, line: int) -> str:
        """`FILE:LINE` where the user wrote the row in a line of the artifact, counted from 1."""
        file, number = self.places[line - 1]
        return f"{self.path}:{line}" if file == GENERATED else f"{self.names[file]}:{number}"

    def file_of(self, name: str) -> int:
        """The number of the file that a row with this name is from."""
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, int]:
        return {self.name(line): file for line, (file, _) in enumerate(self.places, 1)}


def write_origins(rows: Path, places: Sequence[tuple[int, int]]) -> None:
    """Writes where the rows of a file come from."""
    write_text(_beside(rows), json.dumps([list(place) for place in places]))


def read_origins(rows: Path, stats: Mapping[str, Any], kind: str) -> Origins:
    """Where the rows of an artifact's file come from; `stats` are the artifact's."""
    places = [(file, line) for file, line in json.loads(_beside(rows).read_text(encoding="utf-8"))]
    own = stats.get("own", {}).get(kind, {})
    return Origins(rows, places, own.get("files", ()), own.get("weights", ()))


def _beside(rows: Path) -> Path:
    return rows.with_suffix(".origins.json")


def epoch_of(files: Sequence[int], weights: Sequence[float], kind: str) -> list[int]:
    """The rows of an epoch, by number: all in order, without weights; else repeated to their files' shares.

    `files` has each row's file. Raises `RowError` for a file without rows, and for an epoch of more than `MOST_PASSES`
    times the rows.
    """
    if not weights:
        return list(range(len(files)))
    of_file = [[row for row, file in enumerate(files) if file == number] for number in range(len(weights))]
    for number, rows in enumerate(of_file):
        if not rows:
            raise RowError(f"rows.{kind}: no row of file {number + 1} is left, so it cannot have its share; remove it")
    scale = max(len(rows) / weight for rows, weight in zip(of_file, weights, strict=True))
    counts = [max(len(rows), round(scale * weight)) for rows, weight in zip(of_file, weights, strict=True)]
    if sum(counts) > MOST_PASSES * len(files):
        raise RowError(
            f"rows.{kind}: with these weights an epoch has {sum(counts):,} rows of {len(files):,}; bring the weights "
            f"nearer to the files' sizes, {', '.join(f'{len(rows):,}' for rows in of_file)} rows"
        )
    return [rows[at % len(rows)] for rows, count in zip(of_file, counts, strict=True) for at in range(count)]
