"""The documents of an artifact of stage `documents`, read in parts: few of their columns, or few of them whole.

What must hold: memory holds `READ_BYTES` of texts at a time, however many and however long the documents are.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.artifact import ArtifactError
from lifecycle.data.documents import SPLITS, Split, document_files

READ_BYTES = 32 << 20  # of decoded columns, about; one document may be larger
ROWS = 8192  # at a time, of columns without texts
# At a time, of texts: copies of a long one are a few bytes each in the files, so their size there tells too little.
TEXTS = 32
_AGAIN = "delete its folder and run the stage documents again"
_BUFFER = 1 << 20  # bytes of a column that are read from its file at a time; otherwise a whole row group's

type Wanted = Callable[[pa.RecordBatch, int], NDArray[np.bool_]]  # of rows, and the number of the first of them


@dataclass(frozen=True)
class Part:
    """Documents that follow each other in a split; `first`: the number of the first of them in its split."""

    split: Split
    first: int
    rows: pa.RecordBatch


def num_documents(folder: Path, splits: Sequence[Split] = SPLITS) -> int:
    """How many documents the splits have."""
    return sum(group.num_rows for split in splits for group in _row_groups(folder, split))


def columns_of(folder: Path) -> pa.Schema:
    """The columns of the documents."""
    with _opened(document_files(folder, "kept")[0]) as file:
        return file.schema_arrow


def require_columns(folder: Path, names: Iterable[str]) -> None:
    """Raises `ArtifactError` if the documents have not all these columns."""
    _require(folder, columns_of(folder), names)


def read_parts(folder: Path, columns: Sequence[str], splits: Sequence[Split] = SPLITS) -> Iterator[Part]:
    """These columns of all documents, in order."""
    for split in splits:
        for group in _row_groups(folder, split):
            for start, rows in group.read(columns):
                yield Part(split, group.first + start, rows)


def read_where(
    folder: Path, split: Split, reads: Sequence[str], is_wanted: Wanted, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The documents that `is_wanted` chooses by the columns in `reads`, in order, as dicts of `columns` (None: all). Of
    the other columns it reads only the row groups that have one of these documents."""
    for group in _row_groups(folder, split):
        chosen = [is_wanted(rows, group.first + start) for start, rows in group.read(reads)]
        flags = np.concatenate([np.zeros(0, bool), *chosen])
        if flags.any():
            for start, rows in group.read(group.file.schema_arrow.names if columns is None else columns):
                yield from rows.filter(pa.array(flags[start : start + rows.num_rows])).to_pylist()


def read_rows(
    folder: Path, split: Split, numbers: Collection[int], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The documents with these numbers in their split, in order: (number, document)."""
    wanted = np.unique(np.fromiter(numbers, np.int64))

    def is_wanted(rows: pa.RecordBatch, first: int) -> NDArray[np.bool_]:
        return np.isin(np.arange(first, first + rows.num_rows), wanted)

    return zip(wanted.tolist(), read_where(folder, split, (), is_wanted, columns), strict=True)


def column_ranges(folder: Path, columns: Collection[str]) -> Mapping[str, tuple[float, float]]:
    """The smallest and the largest value of numeric columns, from the files' statistics; without those of which every
    value is null."""
    ranges = dict.fromkeys(columns, (math.inf, -math.inf))
    for split in SPLITS:
        for group in _row_groups(folder, split):
            for chunk in group.chunks:
                name, statistics = chunk.path_in_schema, chunk.statistics
                if name in ranges and statistics is not None and statistics.has_min_max:
                    low, high = ranges[name]
                    ranges[name] = min(low, statistics.min), max(high, statistics.max)
    return {name: (low, high) for name, (low, high) in ranges.items() if low <= high}


def id_numbers(rows: pa.RecordBatch) -> NDArray[np.uint64]:
    """The documents' ids, 128 bits, as two numbers each: [document, half]."""
    digits = "".join(rows["id"].to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class _RowGroup:
    """A row group of a file; `first`: the number of its first document in the split."""

    path: Path
    file: pq.ParquetFile
    number: int
    first: int

    @property
    def num_rows(self) -> int:
        """How many documents it has."""
        return self.file.metadata.row_group(self.number).num_rows

    @property
    def chunks(self) -> list[Any]:
        """What the file says of each of its columns here."""
        found = self.file.metadata.row_group(self.number)
        return [found.column(at) for at in range(found.num_columns)]

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(the number of its first row in the row group, the batch). Raises `ArtifactError` for a damaged file."""
        _require(self.path, self.file.schema_arrow, columns)
        sizes = {chunk.path_in_schema: chunk.total_uncompressed_size for chunk in self.chunks}
        num_bytes = sum(size for path, size in sizes.items() if path.partition(".")[0] in columns)
        most, start = TEXTS if "text" in columns else ROWS, 0
        batch_size = max(1, min(most, self.num_rows * READ_BYTES // max(1, num_bytes)))
        try:
            for batch in self.file.iter_batches(batch_size, row_groups=[self.number], columns=list(columns)):
                yield start, batch
                start += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from None


def _require(path: Path, there: pa.Schema, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in there.names]:
        raise ArtifactError(f"{path}: no column {missing[0]}: another version made it; {_AGAIN}")


def _row_groups(folder: Path, split: Split) -> Iterator[_RowGroup]:
    first = 0
    for path in document_files(folder, split):
        with _opened(path) as file:
            for number in range(file.num_row_groups):
                yield (group := _RowGroup(path, file, number, first))
                first += group.num_rows


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path}: {str(error).partition('\n')[0]}: damaged; {_AGAIN}")
