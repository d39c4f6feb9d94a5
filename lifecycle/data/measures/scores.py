"""Scores that were made elsewhere: a column of each, joined to the documents by their ids when they are selected.

A file has rows with `id` and numbers, as JSONL or Parquet: grades by a language model, perplexities, whatever a user
has computed. A document without a score has null, which every limit lets pass. Tagging knows nothing of it, so another
file or limit reads no source again. In memory are 24 bytes for each score, more while a file is read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.config import ConfigError, nearest
from lifecycle.data.config import DataConfig, ScoresConfig
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.measures.unwanted import UsersFile
from lifecycle.data.user_lists import shown_entry
from lifecycle.text.row_files import read_rows

ID_BYTES = 16  # of a document's id
MOST_BITS = 1000  # of an integer: there is a float of its size
SOME = 1 << 16  # rows taken from a file at a time


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores by id: `ids`, different and ascending, and the score of each."""

    ids: NDArray[np.bytes_]
    values: NDArray[np.float64]

    def of(self, ids: pa.Array) -> NDArray[np.float64]:
        """The scores of documents with these ids (hexadecimal digits), NaN where there is none."""
        if not len(self.ids) or not len(ids):
            return np.full(len(ids), np.nan)
        wanted = np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), f"S{ID_BYTES}")
        places = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[places] == wanted, self.values[places], np.nan)


def read_scores(path: Path, column: str) -> ScoreTable:
    """The scores in a file; of an id that is there twice the first. Raises `ConfigError` for a file without any, and
    `RowError` for what is no file of rows."""
    found = path.stat()
    return _read(path, column, (found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=8)
def _read(path: Path, column: str, stat: tuple[int, int]) -> ScoreTable:
    del stat
    parts = list(_parts(path, column))
    if not parts:
        raise ConfigError(f"{path}: no scores in it")
    ids, values = (np.concatenate(own) for own in zip(*parts, strict=True))
    different, first = np.unique(ids, return_index=True)
    return ScoreTable(different, values[first])


def _parts(path: Path, column: str) -> Iterator[tuple[NDArray[np.bytes_], NDArray[np.float64]]]:
    """Ids and scores, `SOME` at a time."""
    ids = bytearray()
    values: list[float] = []
    for number, row in read_rows(path):
        name, value = row.get("id"), row.get(column)
        if not isinstance(name, str) or not _is_id(name):
            raise ConfigError(
                f"{path}:{number}: id {shown_entry(name)} is no document's: 32 hexadecimal digits, as the rows have it"
            )
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{path}:{number}: column {column!r} is no number{nearest(column, row)}")
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ConfigError(f"{path}:{number}: column {column!r} is a number of {value.bit_length()} bits, no score")
        ids += bytes.fromhex(name)
        values.append(float(value))
        if len(values) == SOME:
            yield _arrays(ids, values)
            ids, values = bytearray(), []
    if values:
        yield _arrays(ids, values)


def _is_id(name: str) -> bool:
    try:
        return len(name) == 2 * ID_BYTES and len(bytes.fromhex(name)) == ID_BYTES
    except ValueError:
        return False


def _arrays(ids: bytearray, values: list[float]) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    return np.frombuffer(bytes(ids), f"S{ID_BYTES}"), np.array(values)


@dataclass(frozen=True)
class JoinScores:
    """`NAME_score` for each file of scores, null where a document has none."""

    files: tuple[UsersFile, ...]
    of: tuple[str, ...]  # the column of each file
    columns: ClassVar[pa.Schema] = pa.schema([])  # of the classes that `_with_columns` makes

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a batch."""
        tables = (read_scores(Path(file.path), name) for file, name in zip(self.files, self.of, strict=True))
        return pa.record_batch([pa.array(table.of(batch["id"]), from_pandas=True) for table in tables], self.columns)


@cache
def _with_columns(names: tuple[str, ...]) -> type[JoinScores]:
    return type("JoinScores", (JoinScores,), {"columns": pa.schema([(name, pa.float64()) for name in names])})


def scores_step(config: DataConfig) -> DocumentStep:
    """The step `scores`, of settings that have some. One without limits is a column and no rule."""
    contents = [own["path"] for own in config.selection()["scores"]]
    files = tuple(UsersFile(own.name, own.path, has) for own, has in zip(config.scores, contents, strict=True))
    names = tuple(f"{own.name}_score" for own in config.scores)
    measure = _with_columns(names)(files, tuple(own.column for own in config.scores))
    limits = [own for own in config.scores if own.min is not None or own.max is not None]
    rules = tuple(map(_limit, limits))
    return DocumentStep("scores", measure, rules, settings="min or max of data.scores", is_joined=True)


def _limit(own: ScoresConfig) -> Limit:
    low, high = -math.inf if own.min is None else own.min, math.inf if own.max is None else own.max
    return Limit(own.name, f"{own.name}_score", "{column} {value:.6g} outside [{low:g}, {high:g}]", low, high)
