"""Tables of documents as Parquet files, read in parts; `document_writer.py` writes them.

`tagged-*.parquet` has every document with its measurements. `kept-*`, `heldout-*` and `removed-*.parquet` share one
schema: the columns of the tagged documents and those that say why a document was removed. Equal tables give byte-equal
files, however the tables are cut into batches: fixed row groups, no timestamps.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import batched
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.artifact import ArtifactError

type Flags = NDArray[np.bool_]  # one for each document of some stretches
type Split = Literal["kept", "heldout", "removed"]
SPLITS: tuple[Split, ...] = ("kept", "heldout", "removed")
TAGGED = "tagged"

ROW_GROUP = 1024  # documents that a reader keeps in memory at a time, and a writer
PIECE = 4  # row groups that a worker gets at a time
MOST_PIECES = 4096  # of the work, if each leaves a file; workers get more at a time then

_PART = re.compile(
    r"(\.(?:jsonl|ndjson|json|csv|tsv|parquet|arrow|mbox|warc|wet)(?:\.(?:gz|bz2|xz|zstd?))?(?=:)|\.\w+(?=#))(?::\d+|#.*)\Z",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Stretch:
    """Some documents, mostly tagged ones: a row group of a file. The first one's `ordinal` is its position among all
    that are looked at."""

    path: Path
    group: int
    first: int
    num_documents: int

    @property
    def end(self) -> int:
        """The ordinal behind the last one."""
        return self.first + self.num_documents

    @property
    def num_bytes(self) -> int:
        """Of all columns, before compression."""
        return _metadata(self.path).row_group(self.group).total_byte_size

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The documents with these columns (None: all) and `ordinal`."""
        with pq.ParquetFile(self.path, metadata=_metadata(self.path)) as file:
            table = file.read_row_group(self.group, columns=None if columns is None else list(columns))
        return table.append_column("ordinal", pa.array(np.arange(self.first, self.end, dtype=np.int64)))


def tagged_documents(folder: Path) -> list[Stretch]:
    """All tagged documents, in the order of the sources."""
    return stretches_of(document_files(folder, TAGGED), 0)


def require_columns(stretches: Sequence[Stretch], schema: pa.Schema) -> None:
    """Raises `ArtifactError` for documents with other columns than this version gives them."""
    for path in sorted({stretch.path for stretch in stretches}):
        if not pq.read_schema(path).equals(schema):
            raise ArtifactError(f"{path}: another version made it; delete its folder and run the same command again")


def stretches_of(files: Iterable[Path], first: int) -> list[Stretch]:
    """The documents of some files, in their order; `first`: the ordinal of the first one."""
    stretches: list[Stretch] = []
    for path in files:
        metadata = _metadata(path)
        for group in range(metadata.num_row_groups):
            begin = stretches[-1].end if stretches else first
            stretches.append(Stretch(path, group, begin, metadata.row_group(group).num_rows))
    return stretches


def _metadata(path: Path) -> pq.FileMetaData:
    """The metadata of a file that has many stretches: reading it took as long as a stretch's numbers."""
    about = path.stat()
    return _read_metadata(path, about.st_ino, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _read_metadata(path: Path, *state: int) -> pq.FileMetaData:
    del state  # of the file, so that one in the place of another is read
    return pq.read_metadata(path)


def pieces_of[S: Stretch](stretches: Sequence[S], chosen: Flags) -> list[tuple[tuple[S, Flags], ...]]:
    """Stretches with the flags of their documents, in pieces as workers get them."""
    size = max(PIECE, -(-len(stretches) // MOST_PIECES))
    return list(batched(((own, chosen[own.first : own.end]) for own in stretches), size))


def num_documents(stretches: Sequence[Stretch]) -> int:
    """How many documents there are in all."""
    return stretches[-1].end if stretches else 0


def read_documents(folder: Path, split: Split, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split in their order, as dicts of `columns` (None: all); keeps one row group in memory.

    `meta` is a JSON string. Raises `ArtifactError` if the folder has no file of the split.
    """
    for batch in read_batches(folder, split, columns):
        yield from batch.to_pylist()


def read_batches(folder: Path, split: Split, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same as Arrow batches."""
    for path in document_files(folder, split):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROW_GROUP, columns=None if columns is None else list(columns))


def document_files(folder: Path, prefix: str) -> list[Path]:
    """The Parquet files of a split or of the tagged documents, in order."""
    files = sorted(folder.glob(f"{prefix}-*.parquet"), key=lambda path: (len(path.name), path.name))  # 99999 -> 100000
    if not files:
        raise ArtifactError(f"{folder}: no {prefix}-*.parquet here; run the documents stage, which writes it")
    return files


def text_bytes(documents: pa.Table) -> NDArray[np.int64]:
    """UTF-8 bytes of each document's text; tagged documents have them as a column."""
    return pc.call_function("binary_length", [documents["text"]]).to_numpy().astype(np.int64)


def names_of(stretches: Sequence[Stretch], ordinals: NDArray[np.int64]) -> dict[int, str]:
    """The names of some tagged documents, by ordinal; `ordinals` ascend."""
    names: dict[int, str] = {}
    for stretch in stretches:
        low, high = np.searchsorted(ordinals, [stretch.first, stretch.end])
        if high > low:
            own = stretch.read(["source", "path"]).take(ordinals[low:high] - stretch.first)
            names.update(zip(ordinals[low:high].tolist(), document_names(own), strict=True))
    return names


def document_names(documents: pa.Table) -> list[str]:
    """`source:path` of each document, as messages and reasons name it."""
    pairs = zip(documents["source"].to_pylist(), documents["path"].to_pylist(), strict=True)
    return [f"{source}:{path}" for source, path in pairs]


def file_of(path: str) -> str:
    """The file in a document's path, without the `#key` or `:line` of a part."""
    return _PART.sub(r"\1", path)
