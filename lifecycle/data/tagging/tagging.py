"""Tagging: sources -> every document with a column for each measurement.

What must hold: same sources and settings, same bytes out, whatever the number of workers and however often the work was
interrupted.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lifecycle.core.config import ConfigError
from lifecycle.core.files import remove_folders, write_text
from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import spending
from lifecycle.data.config import DataConfig
from lifecycle.data.document_writer import DocumentWriter, gather_files, piece_bytes
from lifecycle.data.documents import ROW_GROUP, TAGGED
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import SourceFile, file_size, list_files
from lifecycle.data.tagging.code_version import failures_of
from lifecycle.data.tagging.engine import Engine, engine_of, ordered_results
from lifecycle.data.tagging.partition_store import FAILED, PartitionStore, Tagged
from lifecycle.data.tagging.partitions import Partition, partitions_of, tagged_schema

READING = "reading.json"
JOIN = "join partitions"  # the last step
TEXTLESS = ("empty", "no_text")  # reasons that are no damage


@dataclass(frozen=True)
class Reading:
    """The files read from the sources, their bytes, and the unusable files and rows."""

    num_files: int
    num_bytes: int
    skipped: tuple[Skipped, ...]


def tag_documents(config: DataConfig, kept: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Writes `tagged-*.parquet` and `reading.json` into `out`; returns their summary. `kept`: the folder of partitions,
    where those that an earlier run has made are found again.

    Raises `ConfigError` if a source cannot be used, naming it and the setting to change.
    """
    remove_folders(out)
    files = list_files(config)
    num_bytes = sum(map(file_size, files))
    store = PartitionStore(kept)
    with engine_of(config, num_bytes) as engine:
        partitions = list(partitions_of(files, config))
        made = _make_partitions(store, partitions, engine, progress)
        _reject_wrong_columns(config, files, [entry for tagged in made for entry in tagged.skipped])
        _join(store, partitions, made, config, engine, out, progress)
    num_documents = sum(tagged.num_documents for tagged in made)
    reading = Reading(len(files), num_bytes, tuple(entry for tagged in made for entry in tagged.skipped))
    write_reading(out, reading)
    for line in _report_skipped(config, files, num_documents, reading, out):
        progress.note(line)
    store.keep(partitions)
    counts = {"files": len(files), "bytes": num_bytes, "documents": num_documents, "skipped": len(reading.skipped)}
    return counts | failures_of(sum(entry.reason == FAILED for entry in reading.skipped))


def _make_partitions(
    store: PartitionStore, partitions: Sequence[Partition], engine: Engine, progress: Progress
) -> list[Tagged]:
    """Makes the partitions that are not there yet; returns what is known of each."""
    made: dict[int, Tagged] = {}
    progress.start("tagging", total=sum(len(partition.files) for partition in partitions))
    num_files = num_documents = num_skipped = 0
    for number, tagged in store.tag(partitions, engine):
        made[number] = tagged
        num_files += len(partitions[number].files)
        num_documents += tagged.num_documents
        num_skipped += len(tagged.skipped)
        progress.update(num_files, documents=num_documents, skipped=num_skipped)
    return [made[number] for number in range(len(partitions))]


class _Run(NamedTuple):
    """Some documents of a partition, one behind the other."""

    partition: Partition
    begin: int
    end: int


def _join(
    store: PartitionStore, partitions: Sequence[Partition], made: Sequence[Tagged], config: DataConfig, engine: Engine,
    out: Path, progress: Progress,
) -> None:  # fmt: skip
    """Writes the documents of all partitions, as `tagged-*.parquet` into `out`."""
    counts, text_bytes = [tagged.num_documents for tagged in made], sum(tagged.text_bytes for tagged in made)
    share = piece_bytes(text_bytes) / max(1, text_bytes)
    pieces = _pieces(partitions, counts, ROW_GROUP * max(1, round(share * sum(counts) / ROW_GROUP)))
    with tempfile.TemporaryDirectory(prefix="pieces-", dir=out) as name:
        folders = [Path(name, f"{number:05d}") for number in range(len(pieces))]
        work = [(store, piece, config, folder) for piece, folder in zip(pieces, folders, strict=True)]
        ordered_results(engine, _write, work, progress, "writing tagged documents")
        gather_files(folders, TAGGED, out)


def _pieces(partitions: Sequence[Partition], counts: Sequence[int], size: int) -> list[list[_Run]]:
    """The documents of all partitions in pieces of so many, wherever partitions end; at least one piece."""
    pieces: list[list[_Run]] = [[]]
    room = size
    for partition, count in zip(partitions, counts, strict=True):
        begin = 0
        while begin < count:
            if not room:
                pieces.append([])
                room = size
            end = min(count, begin + room)
            pieces[-1].append(_Run(partition, begin, end))
            begin, room = end, room - (end - begin)
    return pieces


def _write(work: tuple[PartitionStore, Sequence[_Run], DataConfig, Path]) -> None:
    """Writes some documents into a folder of their own; in worker processes."""
    store, runs, config, folder = work
    folder.mkdir(exist_ok=True)  # there if a process died over it
    with spending(JOIN), DocumentWriter(folder, TAGGED, tagged_schema(config)) as writer:
        for run in runs:
            for documents in store.documents(*run):
                writer.write(documents)


def _report_skipped(
    config: DataConfig, files: Sequence[SourceFile], num_documents: int, reading: Reading, out: Path
) -> list[str]:
    """A line each for the files and the rows that could not be used; raises `ConfigError` for too large a share.

    Files and rows without text do not count: an empty module is no loss.
    """
    names = {(config.sources[file.source].name, file.path) for file in files}
    lost = [entry for entry in reading.skipped if entry.reason not in TEXTLESS]
    lost_files = [entry for entry in lost if (entry.source, entry.path) in names]
    lost_rows = [entry for entry in lost if (entry.source, entry.path) not in names]
    lines = []
    all_rows = num_documents + len(lost_rows)
    for what, entries, total in (("files", lost_files, len(files)), ("rows", lost_rows, all_rows)):
        if not entries:
            continue
        counts = Counter(entry.reason for entry in entries).most_common()
        line = (
            f"{len(entries):,} of {total:,} {what} cannot be used: {', '.join(f'{why} {n:,}' for why, n in counts)}; "
            f"first: {entries[0].source}: {entries[0].path}: {entries[0].detail}"
        )
        if len(entries) > config.max_skipped * total:
            limit = f"data.max_skipped={config.max_skipped:g}"
            fix = f"correct or exclude them, or allow a larger share than {limit}"
            raise ConfigError(f"{line}; all are listed in {out / READING}; {fix}")
        lines.append(f"{line}; all are listed in {out.name.removesuffix('.partial')}/{READING}")
    return lines


def write_reading(folder: Path, reading: Reading) -> None:
    """Writes `reading.json`."""
    write_text(folder / READING, json.dumps(asdict(reading), indent=1) + "\n")


def read_reading(folder: Path) -> Reading:
    """Reads `reading.json`, written by `tag_documents`."""
    tree = json.loads((folder / READING).read_text(encoding="utf-8"))
    return Reading(tree["num_files"], tree["num_bytes"], tuple(Skipped(**entry) for entry in tree["skipped"]))


def _reject_wrong_columns(config: DataConfig, files: Sequence[SourceFile], skipped: Sequence[Skipped]) -> None:
    """Raises `ConfigError` if all files of a source and format have no text in its column: a mistake in the
    configuration, not noise in the data."""
    useless = {(entry.source, entry.path): entry for entry in skipped if entry.reason == "no_usable_row"}
    if not useless:
        return
    formats = {(config.sources[file.source].name, file.path): (file.source, file.format) for file in files}
    totals, counts = Counter(formats.values()), Counter(formats[name] for name in useless)
    for (source, path), entry in useless.items():
        total = totals[formats[source, path]]
        if counts[formats[source, path]] == total:
            which = path if total == 1 else f"all {total:,} files like {path}"
            rows = [s for s in skipped if s.source == source and s.path.startswith(f"{path}:")]
            first = f"; first: {rows[0].path}: {rows[0].detail}" if rows else ""
            fix = "set text_column of the source, or correct or exclude them"
            raise ConfigError(f"source {source!r}: {which}: {entry.detail}{first}; {fix}")
