"""Partitions of the sources: files -> documents with a column for each measurement. Pure, so it runs in any process.

Every document gets all measurements, so selecting with other thresholds reads no source again. Personal data is masked
in all of them, since documents removed later are written to disk too.
What must hold: a partition's key says what is in its files, how they are read and measured, and by which code, never
how many partitions or workers there are. Whether a list of files is cut behind a file depends on its name and size, so
a new file changes the partition that it is in, and seldom one next to it.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter

import pyarrow as pa

from lifecycle.core.config import ConfigError, digest
from lifecycle.data.code_version import code_version
from lifecycle.data.config import DataConfig, SourceConfig
from lifecycle.data.extract import RawDocument, Skipped, extract_file, raw_batch
from lifecycle.data.filters import document_steps
from lifecycle.data.row_parts import row_parts
from lifecycle.data.sources import SourceFile, content_hash, file_size
from lifecycle.data.steps import run_steps

PARTITION_BYTES = 500_000  # about a second's work: small enough that two workers end at about the same time
MOST_PARTITIONS = 4  # of these bytes in one partition, if it has several files
BATCH_CHARS = 4_000_000  # text that a map step gets at a time, even if one file has millions of rows


@dataclass(frozen=True)
class Partition:
    """Files of one source, for one call of `tag_files`."""

    files: tuple[SourceFile, ...]
    config: DataConfig

    @property
    def source(self) -> SourceConfig:
        """Where its files are from."""
        return self.config.sources[self.files[0].source]

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """What was in each file when it was first asked for, as a hash."""
        return tuple(map(content_hash, self.files))

    def require_unchanged(self) -> None:
        """Raises `ConfigError` if a file has other content by now: what was read of it may be of neither."""
        for entry, content in zip(self.files, self.contents, strict=True):
            if content_hash(entry) != content:
                raise ConfigError(
                    f"source {self.source.name!r}: {entry.path} changed while it was read; when nothing writes to it, "
                    "run the same command again: it continues from here"
                )

    @cached_property
    def key(self) -> str:
        """What decides its documents and their columns, as a hash."""
        source = self.source
        named = zip(self.files, self.contents, strict=True)
        return digest({
            "files": [(entry.path, entry.format, content) for entry, content in named],
            "source": source.model_dump(mode="json", exclude={"path", "include", "exclude"}),
            "settings": {name: value for name, value in self.config.tagging().items() if name != "sources"},
            "code": code_version(__name__),
        })  # fmt: skip


def partitions_of(files: Sequence[SourceFile], config: DataConfig) -> Iterator[Partition]:
    """Cuts a list of files into partitions of about `PARTITION_BYTES`. A file ends one with a probability of its share
    of these bytes, drawn from its name."""
    for _, own in groupby(files, key=attrgetter("source")):
        part: list[SourceFile] = []
        size = 0
        for entry in own:
            if pieces := _parts(entry):
                if part:
                    yield Partition(tuple(part), config)
                yield from (Partition((piece,), config) for piece in pieces)
                part, size = [], 0
                continue
            part.append(entry)
            size += file_size(entry)
            is_drawn = zlib.crc32(entry.path.encode()) / 2**32 * PARTITION_BYTES < file_size(entry)
            if is_drawn or size >= MOST_PARTITIONS * PARTITION_BYTES:
                yield Partition(tuple(part), config)
                part, size = [], 0
        if part:
            yield Partition(tuple(part), config)


def _parts(entry: SourceFile) -> list[SourceFile]:
    """The parts of a large file of rows; none of others."""
    most = MOST_PARTITIONS * PARTITION_BYTES
    if entry.format not in ("jsonl", "parquet") or file_size(entry) <= most:
        return []
    return [replace(entry, part=part) for part in row_parts(entry.file, entry.format, most)]


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
