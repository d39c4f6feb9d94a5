"""Partitions of the sources: files -> documents with a column for each measurement. Pure, so it runs in any process.

Every document gets all measurements, so selecting with other thresholds reads no source again. Personal data is masked
in all of them, since documents removed later are written to disk too.
What must hold: a partition's key says what is in its files, how they are read and measured, and by which code, never
how many partitions or workers there are. Whether a list of files is cut behind a file depends on its name and size, so
a new file changes the partition that it is in, and seldom one next to it.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter

import pyarrow as pa

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.step_costs import spending
from lifecycle.data.config import DataConfig, SourceConfig
from lifecycle.data.measures.filters import tagging_steps
from lifecycle.data.measures.steps import DocumentStep, run_steps, schema_after
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RAW_COLUMNS, RawDocument, Skipped, raw_batch
from lifecycle.data.reading.row_parts import row_parts
from lifecycle.data.reading.sources import ARCHIVES, SourceFile, content_hash, file_size
from lifecycle.data.tagging.code_version import code_version

MOST_PARTITIONS = 4  # times `data.partition_bytes` in one partition, if it has several files
BATCH_CHARS = 4_000_000  # text that a map step gets at a time, even if one file has millions of rows
READ = "read"  # what comes before the map steps


@dataclass(frozen=True)
class Partition:
    """Files of one source, for one call of `tag_files`."""

    files: tuple[SourceFile, ...]
    config: DataConfig

    @property
    def source(self) -> SourceConfig:
        """Where its files are from."""
        return self.config.sources[self.files[0].source]

    @property
    def num_bytes(self) -> int:
        """Of its files, or of the parts of files that are in it."""
        return sum(
            file_size(entry) if entry.part is None else entry.part.end - entry.part.begin for entry in self.files
        )

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
        named = zip(self.files, self.contents, strict=True)
        elsewhere = {"path", "include"}  # said by the files' names
        if all(entry.format and entry.format not in ARCHIVES for entry in self.files):
            elsewhere.add("exclude")
        return digest({
            "files": [(entry.path, entry.format, content) for entry, content in named],
            "source": self.source.model_dump(mode="json", exclude=elsewhere),
            "settings": {name: value for name, value in self.config.tagging().items() if name != "sources"},
            "code": code_version(__name__),
        })  # fmt: skip


def partitions_of(files: Sequence[SourceFile], config: DataConfig) -> Iterator[Partition]:
    """Cuts a list of files into partitions of about `data.partition_bytes`. A file ends one with a probability of its
    share of these bytes, drawn from its name."""
    for _, own in groupby(files, key=attrgetter("source")):
        part: list[SourceFile] = []
        size = 0
        for entry in own:
            if pieces := _parts(entry, config.partition_bytes):
                if part:
                    yield Partition(tuple(part), config)
                yield from (Partition((piece,), config) for piece in pieces)
                part, size = [], 0
                continue
            part.append(entry)
            size += file_size(entry)
            is_drawn = zlib.crc32(entry.path.encode()) / 2**32 * config.partition_bytes < file_size(entry)
            if is_drawn or size >= MOST_PARTITIONS * config.partition_bytes:
                yield Partition(tuple(part), config)
                part, size = [], 0
        if part:
            yield Partition(tuple(part), config)


def _parts(entry: SourceFile, partition_bytes: int) -> list[SourceFile]:
    """The parts of a large file that can be cut; none of others."""
    most = MOST_PARTITIONS * partition_bytes
    if file_size(entry) <= most:
        return []
    return [replace(entry, part=part) for part in row_parts(entry.file, entry.format, most)]


def tagged_schema(config: DataConfig) -> pa.Schema:
    """The columns of tagged documents: those from reading, then those that each map step adds."""
    steps = [step.measure for step in tagging_steps(config)]
    return schema_after(RAW_COLUMNS, steps)


def tag_files(partition: Partition) -> tuple[Iterator[pa.RecordBatch], list[Skipped]]:
    """Reads files and runs the map steps on them; gives the documents, in order, and the unusable files and rows, which
    are all there once the documents have ended."""
    skipped: list[Skipped] = []
    return _tagged(raw_batches(partition, skipped), tagging_steps(partition.config)), skipped


def _tagged(batches: Iterator[pa.RecordBatch], steps: Sequence[DocumentStep]) -> Iterator[pa.RecordBatch]:
    """Runs the map steps on documents; counts what each step costs."""
    while True:
        with spending(READ):
            batch = next(batches, None)
        if batch is None:
            return
        for step in steps:
            with spending(step.name):
                batch = run_steps(batch, [step.measure])
        yield batch


def raw_batches(partition: Partition, skipped: list[Skipped]) -> Iterator[pa.RecordBatch]:
    """The documents of the files, `BATCH_CHARS` at a time; what is not used is appended to `skipped`."""
    return map(raw_batch, _batches(_documents(partition, skipped)))


def _documents(partition: Partition, skipped: list[Skipped]) -> Iterator[RawDocument]:
    """The documents of the files, one at a time; what is not used is appended to `skipped`."""
    for entry in partition.files:
        for item in extract_file(entry, partition.source, partition.config.max_document_bytes):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                yield item


def _batches(documents: Iterable[RawDocument]) -> Iterator[list[RawDocument]]:
    """Cuts documents into batches of about `BATCH_CHARS`."""
    batch: list[RawDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
