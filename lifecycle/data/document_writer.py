"""Writes tables of documents as Parquet files, in one go or, by several processes, in pieces."""

from collections.abc import Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.documents import ROW_GROUP, document_files, text_bytes

FILE_BYTES = 128 << 20  # text per Parquet file: large enough for few files, small enough for one task on a cluster
GROUP_BYTES = 16 << 20  # text per row group, if documents are long
PIECES = 16  # so many of a small corpus, for all cores to have some
LEAST_PIECE = 4 << 20  # bytes


class DocumentWriter:
    """Writes tables to `<prefix>-00000.parquet` and so on, in order; without documents, one empty file with the schema.

    A context manager: leaving it without an error ends the last file. Keeps the documents of a row group in memory.
    """

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema) -> None:
        self._folder, self._prefix, self._schema = folder, prefix, schema
        self._pending: list[pa.Table] = []
        self._num_pending = self._pending_bytes = self._file_bytes = self._num_files = 0
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._write_group()
            if not self._num_files:
                self._open_file()
        if self._file is not None:
            self._file.close()

    def write(self, documents: pa.Table) -> None:
        """Adds documents; they must have the writer's schema, with a column `text`."""
        start = 0
        for at, size in enumerate(text_bytes(documents).tolist()):
            if self._num_pending and (self._num_pending == ROW_GROUP or self._pending_bytes + size > GROUP_BYTES):
                self._pending.append(documents.slice(start, at - start))
                self._write_group()
                start = at
            self._num_pending += 1
            self._pending_bytes += size
        self._pending.append(documents.slice(start))

    def _write_group(self) -> None:
        if not self._num_pending:
            return
        if self._file is None or self._file_bytes + self._pending_bytes > FILE_BYTES:
            self._open_file()
        assert self._file is not None
        group = pa.concat_tables([self._schema.empty_table(), *self._pending]).combine_chunks()
        self._file.write_table(group, row_group_size=ROW_GROUP)
        self._file_bytes += self._pending_bytes
        self._pending, self._num_pending, self._pending_bytes = [], 0, 0

    def _open_file(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self._folder / f"{self._prefix}-{self._num_files:05d}.parquet"
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._num_files += 1
        self._file_bytes = 0


def piece_bytes(total: int) -> int:
    """How large the pieces are that so many bytes are cut in: `FILE_BYTES`, or a sixteenth of all if that is less."""
    return min(FILE_BYTES, max(LEAST_PIECE, -(-total // PIECES)))


def cut_evenly[T](items: Sequence[T], sizes: Sequence[int]) -> list[list[T]]:
    """Items in their order, in pieces of about `piece_bytes`. The sizes alone decide, so the files are the same whoever
    writes them."""
    size = piece_bytes(sum(sizes))
    numbers = [(end - own) // size for end, own in zip(accumulate(sizes), sizes, strict=True)]
    pieces = groupby(zip(numbers, items, strict=True), key=itemgetter(0))
    return [[item for _, item in piece] for _, piece in pieces]


def gather_files(pieces: Sequence[Path], prefix: str, out: Path) -> None:
    """Moves the files of a prefix from the folders of pieces, in their order, to one folder, in the place of those that
    are there; leaves out those without a document, if any has some."""
    for leftover in out.glob(f"{prefix}-*.parquet"):
        leftover.unlink()
    files = [path for piece in pieces for path in document_files(piece, prefix)]
    full = [path for path in files if pq.read_metadata(path).num_rows] or files[:1]
    for number, path in enumerate(full):
        path.replace(out / f"{prefix}-{number:05d}.parquet")
