"""Tables of documents as Parquet files, written and read in parts.

`tagged-*.parquet` has every document with its measurements. `kept-*`, `heldout-*` and `removed-*.parquet` share one
schema: the columns of the tagged documents and those that say why a document was removed. Equal tables give byte-equal
files, however the tables are cut into batches: fixed row groups, no timestamps.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.artifact import ArtifactError

type Split = Literal["kept", "heldout", "removed"]
SPLITS: tuple[Split, ...] = ("kept", "heldout", "removed")
TAGGED = "tagged"

FILE_BYTES = 128 << 20  # text per Parquet file: large enough for few files, small enough for one task on a cluster
ROW_GROUP = 1024  # documents that a reader keeps in memory at a time

_PART = re.compile(r"(\.(?:jsonl|ndjson|parquet)(?=:)|\.\w+(?=#))(?::\d+|#.*)\Z", re.DOTALL | re.IGNORECASE)


class DocumentWriter:
    """Writes tables to `<prefix>-00000.parquet` and so on, in order; without documents, one empty file with the schema.

    A context manager: leaving it without an error writes the last file. Keeps one file's documents in memory at a time.
    """

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema) -> None:
        self._folder, self._prefix, self._schema = folder, prefix, schema
        self._pending: list[pa.Table] = []
        self._pending_bytes = self._num_files = 0

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and (self._pending or not self._num_files):
            self._write_file()

    def write(self, documents: pa.Table) -> None:
        """Adds documents; they must have the writer's schema, with a column `text`."""
        start = 0
        for at, size in enumerate(text_bytes(documents)):
            if self._pending_bytes + size > FILE_BYTES and self._pending_bytes:
                self._pending.append(documents.slice(start, at - start))
                self._write_file()
                start = at
            self._pending_bytes += int(size)
        self._pending.append(documents.slice(start))

    def _write_file(self) -> None:
        table = pa.concat_tables([self._schema.empty_table(), *self._pending]).combine_chunks()
        path = self._folder / f"{self._prefix}-{self._num_files:05d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
        self._num_files += 1
        self._pending, self._pending_bytes = [], 0


def read_tagged(folder: Path) -> pa.Table:
    """All tagged documents in the order of the sources, with their position in that order as the column `ordinal`."""
    table = pa.concat_tables(pq.read_table(path) for path in document_files(folder, TAGGED))
    return table.append_column("ordinal", pa.array(np.arange(len(table), dtype=np.int64)))


def read_documents(folder: Path, split: Split, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a split in their order, as dicts of `columns` (None: all); keeps one row group in memory.

    `meta` is a JSON string. Raises `ArtifactError` if the folder has no file of the split.
    """
    for path in document_files(folder, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=None if columns is None else list(columns)):
                yield from batch.to_pylist()


def document_files(folder: Path, prefix: str) -> list[Path]:
    """The Parquet files of a split or of the tagged documents, in order."""
    files = sorted(folder.glob(f"{prefix}-*.parquet"))
    if not files:
        raise ArtifactError(f"{folder}: no {prefix}-*.parquet here; run the documents stage, which writes it")
    return files


def text_bytes(documents: pa.Table) -> NDArray[np.int64]:
    """UTF-8 bytes of each document's text."""
    return pc.call_function("binary_length", [documents["text"]]).to_numpy().astype(np.int64)


def document_names(documents: pa.Table) -> list[str]:
    """`source:path` of each document, as messages and reasons name it."""
    pairs = zip(documents["source"].to_pylist(), documents["path"].to_pylist(), strict=True)
    return [f"{source}:{path}" for source, path in pairs]


def file_of(path: str) -> str:
    """The file in a document's path, without the `#key` or `:line` of a part."""
    return _PART.sub(r"\1", path)
