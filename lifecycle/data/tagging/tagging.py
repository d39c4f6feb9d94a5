"""Tagging: sources -> every document with a column for each measurement.

What must hold: same sources and settings, same bytes out, whatever the number of workers and however often the work was
interrupted.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import TAGGED, DocumentWriter
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import SourceFile, file_size, list_files
from lifecycle.data.tagging.code_version import failures_of
from lifecycle.data.tagging.engine import Engine, engine_of
from lifecycle.data.tagging.partition_store import FAILED, PartitionStore, Tagged
from lifecycle.data.tagging.partitions import Partition, partitions_of, tagged_schema

READING = "reading.json"
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
    files = list_files(config)
    num_bytes = sum(map(file_size, files))
    partitions, store = list(partitions_of(files, config)), PartitionStore(kept)
    made: list[Tagged] = []
    with (
        engine_of(config, num_bytes) as engine,
        DocumentWriter(out, TAGGED, tagged_schema(config)) as writer,
    ):
        for partition, tagged in zip(partitions, _partitions(store, partitions, engine, progress), strict=True):
            made.append(tagged)
            if tagged.num_documents:
                for documents in store.documents(partition):
                    writer.write(documents)
    num_documents = sum(tagged.num_documents for tagged in made)
    reading = Reading(len(files), num_bytes, tuple(entry for tagged in made for entry in tagged.skipped))
    write_reading(out, reading)
    for line in _report_skipped(config, files, num_documents, reading, out):
        progress.note(line)
    store.keep(partitions)
    counts = {"files": len(files), "bytes": num_bytes, "documents": num_documents, "skipped": len(reading.skipped)}
    return counts | failures_of(sum(entry.reason == FAILED for entry in reading.skipped))


def _partitions(
    store: PartitionStore, partitions: Sequence[Partition], engine: Engine, progress: Progress
) -> Iterator[Tagged]:
    """Makes the partitions that are not there yet; yields what is known of each, in their order, as soon as it is."""
    made: dict[int, Tagged] = {}
    progress.start("tagging", total=sum(len(partition.files) for partition in partitions))
    num_files = num_documents = num_skipped = due = 0
    for number, tagged in store.tag(partitions, engine):
        _reject_useless_files(tagged.skipped)
        made[number] = tagged
        num_files += len(partitions[number].files)
        num_documents += tagged.num_documents
        num_skipped += len(tagged.skipped)
        progress.update(num_files, documents=num_documents, skipped=num_skipped)
        while due in made:
            yield made.pop(due)
            due += 1


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


def _reject_useless_files(skipped: Sequence[Skipped]) -> None:
    """Raises `ConfigError` for a file without any usable row: a configuration mistake, not noise in the data."""
    for entry in skipped:
        if entry.reason == "no_usable_row":
            rows = [s for s in skipped if s.source == entry.source and s.path.startswith(f"{entry.path}:")]
            first = f"; first: {rows[0].path}: {rows[0].detail}" if rows else ""
            raise ConfigError(
                f"source {entry.source!r}: {entry.path}: {entry.detail}{first}; "
                "correct the file, or text_column of the source, or exclude it"
            )
