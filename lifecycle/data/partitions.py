"""Partitions of the sources: files -> documents with a column for each measurement. Pure, so it runs in any process.

Every document gets all measurements, so selecting with other thresholds reads no source again. Personal data is masked
in all of them, since documents removed later are written to disk too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.extract import RawDocument, Skipped, extract_file, raw_batch
from lifecycle.data.filters import document_steps
from lifecycle.data.sources import SourceFile
from lifecycle.data.steps import run_steps

PARTITION_BYTES = 500_000  # about a second's work: small enough that two workers end at about the same time
BATCH_CHARS = 4_000_000  # text that a map step gets at a time, even if one file has millions of rows


@dataclass(frozen=True)
class Partition:
    """Files for one call of `tag_files`."""

    files: tuple[SourceFile, ...]
    config: DataConfig


def partitions_of(files: Sequence[SourceFile], config: DataConfig) -> Iterator[Partition]:
    """Cuts a list of files into partitions of about `PARTITION_BYTES`."""
    part: list[SourceFile] = []
    size = 0
    for entry in files:
        part.append(entry)
        size += file_size(entry)
        if size >= PARTITION_BYTES:
            yield Partition(tuple(part), config)
            part, size = [], 0
    if part:
        yield Partition(tuple(part), config)


def file_size(entry: SourceFile) -> int:
    """Bytes of a file; 0 if it cannot be read, which is reported when it is opened."""
    try:
        return entry.file.stat().st_size
    except OSError:
        return 0


def tagged_schema(config: DataConfig) -> pa.Schema:
    """The columns of tagged documents: those from reading, then those that each map step adds."""
    steps = [step.measure for step in document_steps(config)]
    return run_steps(raw_batch([]), steps).schema


def tag_files(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
    """Reads files and runs the map steps on them; returns the documents, in order, and the unusable files and rows."""
    config = partition.config
    steps = [step.measure for step in document_steps(config)]
    items = [
        item
        for entry in partition.files
        for item in extract_file(entry, config.sources[entry.source], config.max_document_bytes)
    ]
    documents = [item for item in items if isinstance(item, RawDocument)]
    batches = [run_steps(raw_batch(batch), steps) for batch in _batches(documents)]
    return pa.Table.from_batches(batches, tagged_schema(config)), [item for item in items if isinstance(item, Skipped)]


def _batches(documents: Sequence[RawDocument]) -> Iterator[Sequence[RawDocument]]:
    """Cuts documents into batches of about `BATCH_CHARS`."""
    start = size = 0
    for at, document in enumerate(documents, 1):
        size += len(document.text)
        if size >= BATCH_CHARS or at == len(documents):
            yield documents[start:at]
            start, size = at, 0
