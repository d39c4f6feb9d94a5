"""Partitions that are made: a Parquet file for each, under its key, whole or not there.

They stay between runs, so a killed run goes on where it was, and a source with new files is read as far as it is new.
A file has its partition's documents and, beside its schema, what of the partition could not be used. A partition that
fails, or whose process dies, is tried again, `data.attempts` times in all; then each of its files alone, and those that
do so count as failed. If this process does the work, a mark beside the partitions names the one in work: when the
process dies of it, the next run finds the mark, and makes what is missing in another process.
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from operator import attrgetter
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.core.cores import available_cores
from lifecycle.core.files import temporary
from lifecycle.core.step_costs import add_input, spending
from lifecycle.core.stopping import Stopped
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import SourceFile
from lifecycle.data.tagging.engine import Engine, Native
from lifecycle.data.tagging.partitions import Partition, tag_files, tagged_schema
from lifecycle.data.tagging.workers import WorkerDiedError

FAILED = "failed"  # the reason of files that are in a partition that failed
WRITE = "write"  # what comes behind the map steps
_TAGGED = b"lifecycle.tagged"  # in the file's metadata


@dataclass(frozen=True)
class Tagged:
    """What was made of a partition: its documents, the bytes of their texts, and the files and rows that could not be
    used."""

    num_documents: int
    text_bytes: int
    skipped: tuple[Skipped, ...]


class PartitionStore:
    """The partitions in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def tag(self, partitions: Sequence[Partition], engine: Engine) -> Iterator[tuple[int, Tagged]]:
        """Makes the partitions that are not here. Yields the number of each and what was made of it, as they are
        ready; a failed one's files are skipped, and it is made again by the next call.

        Raises `OSError` if a result cannot be written, and `ConfigError` for a file that changed while it was read.
        """
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(attrgetter("contents"), partitions))  # hashes files, for the partitions' keys
        missing: list[int] = []
        for number, partition in enumerate(partitions):
            if (found := self._found(partition)) is None:
                missing.append(number)
            else:
                yield number, found
        if engine.is_here and any(_mark(self.folder, partitions[number]).exists() for number in missing):
            with Native(1, apart=True) as other:
                yield from self._made(partitions, missing, other)
        else:
            yield from self._made(partitions, missing, engine)

    def _made(
        self, partitions: Sequence[Partition], missing: Sequence[int], engine: Engine
    ) -> Iterator[tuple[int, Tagged]]:
        died: list[int] = []
        work = [(partitions[number], self.folder, ()) for number in missing]
        for place, result in engine.results(
            _make_marked if engine.is_here else _make, work, _attempts(partitions), apart=True
        ):
            number = missing[place]
            if not isinstance(result, WorkerDiedError):
                yield number, result
            elif len(partitions[number].files) == 1:
                yield number, _failed(partitions[number], result)
            else:
                died.append(number)
        for place, made in self._without_deadly([partitions[number] for number in died], engine):
            yield died[place], made

    def _without_deadly(self, partitions: Sequence[Partition], engine: Engine) -> Iterator[tuple[int, Tagged]]:
        """Makes partitions whose processes died of those of their files that end none alone; yields their numbers, and
        what was made of each."""
        work: list[tuple[Partition, Path, tuple[Skipped, ...]]] = []
        numbers: list[int] = []
        for number, (partition, lost) in enumerate(zip(partitions, _lost_alone(partitions, engine), strict=True)):
            if len(lost) == len(partition.files):
                yield number, Tagged(0, 0, lost)
            else:
                work.append((partition, self.folder, lost))
                numbers.append(number)
        for place, made in engine.results(_make, work, _attempts(partitions), apart=True):
            yield numbers[place], _failed(work[place][0], made) if isinstance(made, WorkerDiedError) else made

    def documents(self, partition: Partition, begin: int, end: int) -> Iterator[pa.Table]:
        """The documents `begin` to `end - 1` of a partition that did not fail, a row group at a time; it is made again
        if its file is damaged."""
        path, at, group, is_made = _path(self.folder, partition), 0, 0, False
        while True:
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    while at < end:
                        num_rows = file.metadata.row_group(group).num_rows
                        if at + num_rows > begin:
                            yield file.read_row_group(group).slice(max(0, begin - at), end - max(at, begin))
                        at, group = at + num_rows, group + 1
                return
            except (OSError, pa.ArrowException):
                if is_made:
                    raise
                _make((partition, self.folder, ()))
                is_made = True

    def keep(self, partitions: Collection[Partition]) -> None:
        """Deletes all other partitions, and what killed processes have left, but for the marks of partitions that still
        fail: they are made again by the next call, and in another process then."""
        names = {_path(self.folder, partition).name for partition in partitions}
        for partition in partitions:
            mark = _mark(self.folder, partition)
            if mark.exists() and self._found(partition) is None:
                names.add(mark.name)
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()

    def _found(self, partition: Partition) -> Tagged | None:
        try:
            metadata = pq.read_metadata(_path(self.folder, partition)).metadata
            tree = json.loads(metadata[_TAGGED])
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):  # not there, or not whole
            return None
        skipped = tuple(Skipped(**entry) for entry in tree["skipped"])
        is_failed = any(entry.reason == FAILED for entry in skipped)
        return None if is_failed else Tagged(tree["num_documents"], tree["text_bytes"], skipped)


def _attempts(partitions: Sequence[Partition]) -> int:
    """Times that each is tried."""
    return max((partition.config.attempts for partition in partitions), default=1)


def _path(folder: Path, partition: Partition) -> Path:
    return folder / f"{partition.key}.parquet"


def _mark(folder: Path, partition: Partition) -> Path:
    """There while this process makes a partition, and after it has died of that."""
    return folder / f"{partition.key}.in_work"


def _lost_alone(partitions: Sequence[Partition], engine: Engine) -> list[tuple[Skipped, ...]]:
    """Those files of each partition that fail alone or end their process."""
    alone = [replace(partition, files=(entry,)) for partition in partitions for entry in partition.files]
    found: dict[int, tuple[Skipped, ...]] = {}
    for place, result in engine.results(_lost, alone, _attempts(partitions), apart=True):
        found[place] = _failed(alone[place], result).skipped if isinstance(result, WorkerDiedError) else result
    ends = [0, *accumulate(len(partition.files) for partition in partitions)]
    return [tuple(entry for place in range(*part) for entry in found[place]) for part in pairwise(ends)]


def _lost(partition: Partition) -> tuple[Skipped, ...]:
    """A partition of one file, if it fails."""
    error = _error_of(partition)
    return () if error is None else _failed(partition, error).skipped


def _make_marked(item: tuple[Partition, Path, tuple[Skipped, ...]]) -> Tagged:
    """Makes a partition in this process, whose end by it leaves a mark."""
    mark = _mark(item[1], item[0])
    mark.touch()
    try:
        return _make(item)
    finally:
        mark.unlink()


def _make(item: tuple[Partition, Path, tuple[Skipped, ...]]) -> Tagged:
    """Makes a partition, but for files that are lost, and writes it."""
    partition, folder, lost = item
    add_input(partition.num_bytes)
    path = _path(folder, partition)
    unfinished = temporary(path.with_stem(f"{path.stem}-{uuid4().hex}"))  # two processes may mend one
    names = {entry.path for entry in lost}
    rest = replace(partition, files=tuple(entry for entry in partition.files if entry.path not in names))
    made = _written(rest, unfinished, lost)
    for _ in range(partition.config.attempts - 1):
        if isinstance(made, Exception):
            made = _written(rest, unfinished, lost)
    if isinstance(made, Exception):
        made = _without_failing(rest, unfinished, made, lost)
    if isinstance(made, Exception):
        unfinished.unlink()
        return Tagged(0, 0, (*_failed(rest, made).skipped, *lost))
    partition.require_unchanged()
    unfinished.replace(path)
    return made


def _without_failing(
    partition: Partition, path: Path, error: Exception, lost: tuple[Skipped, ...]
) -> Tagged | Exception:
    """Writes a partition of those files that do not fail alone; returns an error if none is left."""
    good: list[SourceFile] = []
    for entry in partition.files if len(partition.files) > 1 else ():
        if failed := _lost(replace(partition, files=(entry,))):
            lost += failed
        else:
            good.append(entry)
    return _written(replace(partition, files=tuple(good)), path, lost) if good else error


def _error_of(partition: Partition) -> Exception | None:
    tagging = _Tagging(partition)
    while tagging.next_batch() is not None:
        pass
    return tagging.error


def _written(partition: Partition, path: Path, failed: tuple[Skipped, ...]) -> Tagged | Exception:
    """Writes a partition, a batch at a time, with what had failed in it. What reading it raises is returned: it is the
    partition's alone."""
    num_documents, num_bytes, tagging = 0, 0, _Tagging(partition)
    with (
        open(path, "wb") as file,
        pq.ParquetWriter(file, tagged_schema(partition.config), compression="zstd", write_page_checksum=True) as writer,
    ):
        while (batch := tagging.next_batch()) is not None:
            with spending(WRITE):
                writer.write_batch(batch)
            num_documents += batch.num_rows
            num_bytes += int(batch["text_bytes"].to_numpy().sum())
        made = Tagged(num_documents, num_bytes, (*tagging.skipped, *failed))
        with spending(WRITE):
            writer.add_key_value_metadata({_TAGGED.decode(): json.dumps(asdict(made))})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
    return tagging.error or made


class _Tagging:
    """The documents of a partition while they are made; `error` is what reading them has raised, whatever that is."""

    def __init__(self, partition: Partition) -> None:
        self.skipped: list[Skipped] = []
        self.error: Exception | None = None
        self._partition = partition
        self._documents: Iterator[pa.RecordBatch] | None = None

    def next_batch(self) -> pa.RecordBatch | None:
        """The next ones; None at the end, or at an error."""
        try:
            if self._documents is None:
                self._documents, self.skipped = tag_files(self._partition)
            return next(self._documents, None)
        except Stopped:
            raise
        except Exception as error:
            self.error = error
            return None


def _failed(partition: Partition, error: Exception) -> Tagged:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    num_files = len(partition.files)
    how = "alone too" if num_files == 1 else f"with {num_files} files at once"
    attempts = f"{partition.config.attempts} attempt{'s' * (partition.config.attempts > 1)}"
    detail = f"{what} ({attempts}, {how})"
    first = Skipped(partition.source.name, "", FAILED, detail)
    return Tagged(0, 0, tuple(replace(first, path=path) for entry in partition.files for path in _named(entry)))


def _named(entry: SourceFile) -> Iterator[str]:
    """A file, or each row of a part of one, as messages name it."""
    if entry.part is None:
        yield entry.path
    else:
        first = entry.part.first_row + 1
        yield from (f"{entry.path}:{number}" for number in range(first, first + entry.part.num_rows))
