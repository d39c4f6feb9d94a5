"""Files that fail, or end the process that reads them: they are listed, and all others are read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import list_files
from lifecycle.data.tagging import partition_store
from lifecycle.data.tagging.engine import APART_BYTES, POOL_BYTES, Native, engine_of
from lifecycle.data.tagging.partition_store import PartitionStore
from lifecycle.data.tagging.partitions import Partition, partitions_of
from lifecycle.data.tagging.tagging import read_reading
from lifecycle.data.tagging.workers import WorkerDiedError
from tests.data.test_data_partitions import SMALL, config_of, documents, essays, rows_of, tag
from tests.data.test_data_pipeline import essay


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return essays(tmp_path / "corpus")


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, path: str = "essay20.txt") -> list[str]:
    """Lets every reading of the partition with a file fail; the keys of those that are tried."""
    tried: list[str] = []
    real = partition_store.tag_files

    def tag_files(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
        tried.append(partition.key)
        if path in [entry.path for entry in partition.files]:
            raise error
        return real(partition)

    monkeypatch.setattr(partition_store, "tag_files", tag_files)
    return tried


def test_a_partition_that_fails_is_listed_and_the_others_are_made(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {row["path"]: row for row in documents(tag(corpus, "whole"))}
    (corpus / "essay20.txt").write_text(essay(200))
    with monkeypatch.context() as patch:
        tried = failing(patch, RecursionError("maximum recursion depth exceeded"))
        out = tag(corpus, max_skipped=0.2)
        assert max(map(tried.count, tried)) == 3
        (skipped,) = read_reading(out).skipped
        tried.clear()
        (once,) = read_reading(tag(corpus, "once", max_skipped=0.2, attempts=1)).skipped
        assert max(map(tried.count, tried)) == 1 and "exceeded (1 attempt, alone too)" in once.detail
    assert (skipped.path, skipped.reason) == ("essay20.txt", "failed")
    assert "RecursionError: maximum recursion depth exceeded (3 attempts, alone too)" in skipped.detail
    del whole["essay20.txt"]
    assert {row["path"]: row for row in documents(out)} == whole
    assert not read_reading(tag(corpus, "tried_again")).skipped


DEADLY = ("essay20.txt", "essay41.txt")


class Deadly(Native):
    """Processes that would be ended by some files; another one fails."""

    def results(self, function: Any, work: Sequence[Any], attempts: int, apart: bool = False) -> Iterator[Any]:
        assert apart
        for number, item in enumerate(work):
            partition, lost = (item, ()) if isinstance(item, Partition) else (item[0], item[2])
            paths = {entry.path for entry in partition.files} - {entry.path for entry in lost}
            yield number, WorkerDiedError("ended") if paths & {*DEADLY} else function(item)


def test_files_that_end_a_process_are_listed_and_all_others_are_made(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {row["path"]: row for row in documents(tag(corpus, "whole"))}
    failing(monkeypatch, RecursionError("too deep"), "essay40.txt")
    for partition_bytes in (1000, SMALL, 10**9):  # of a file each, many, and one
        store = PartitionStore(corpus.parent / f"partitions_{partition_bytes}")
        config = config_of(corpus, partition_bytes=partition_bytes)
        parts = list(partitions_of(list_files(config), config))
        made = dict(store.tag(parts, Deadly(2)))
        skipped = {entry.path: entry for part in made.values() for entry in part.skipped}
        assert set(skipped) == {*DEADLY, "essay40.txt"} and {entry.reason for entry in skipped.values()} == {"failed"}
        assert "WorkerDiedError: ended" in skipped["essay20.txt"].detail
        tables = [
            table
            for number, part in enumerate(parts)
            if made[number].num_documents
            for table in store.documents(part, 0, made[number].num_documents)
        ]
        rows = {row["path"]: row for table in tables for row in table.to_pylist()}
        assert rows == {path: row for path, row in whole.items() if path not in skipped}
        assert sum(part.num_documents for part in made.values()) + len(skipped) == 60


def test_a_large_input_is_never_read_by_the_run_s_own_process(corpus: Path) -> None:
    one = config_of(corpus, workers=1)
    assert engine_of(config_of(corpus), POOL_BYTES).is_here and engine_of(one, APART_BYTES).is_here
    assert not engine_of(one, APART_BYTES + 1).is_here


def test_what_ends_the_run_s_own_process_is_made_in_another_by_the_next_run(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, config = PartitionStore(corpus.parent / "partitions"), config_of(corpus, partition_bytes=SMALL)
    parts = list(partitions_of(list_files(config), config))

    def marks() -> list[str]:
        return sorted(path.stem for path in store.folder.glob("*.in_work"))

    def dies(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
        assert marks() == [partition.key]
        if "essay20.txt" in [entry.path for entry in partition.files]:
            patch.setattr(Path, "unlink", lambda path: None)  # a dead process deletes nothing
            raise SystemExit
        return real(partition)

    real = partition_store.tag_files
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(partition_store, "tag_files", dies)
        dict(store.tag(parts, Native(1)))
    assert len(marks()) == 1
    for _ in range(2):  # what failed is tried again, and not here
        with monkeypatch.context() as patch:
            patch.setattr(partition_store, "Native", lambda count, apart: Deadly(count, apart))
            made = dict(store.tag(parts, Native(1)))
        assert {entry.path for part in made.values() for entry in part.skipped} == {*DEADLY}
        store.keep(parts)
        assert len(marks()) == 1
    monkeypatch.setattr(partition_store, "Native", lambda count, apart: Native(1))
    assert not any(part.skipped for part in dict(store.tag(parts, Native(1))).values())
    store.keep(parts)
    assert not marks()


def test_too_many_failures_are_an_error_with_their_cause(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RecursionError("too deep"))
    with pytest.raises(
        ConfigError, match=r"files cannot be used: failed .*RecursionError: too deep.* data\.max_skipped"
    ):
        tag(corpus, max_skipped=0)


def test_each_row_of_a_part_that_fails_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows_of(folder)
    real = partition_store.tag_files

    def tag_files(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
        part = partition.files[0].part
        if part is not None and part.first_row < 130 <= part.first_row + part.num_rows:
            raise RecursionError("too deep")
        return real(partition)

    monkeypatch.setattr(partition_store, "tag_files", tag_files)
    out = tag(folder, max_skipped=0.9)
    skipped = [entry for entry in read_reading(out).skipped if entry.reason == "failed"]
    assert {"rows.jsonl:130", "rows.parquet:130"} <= {entry.path for entry in skipped}
    assert len(documents(out)) + len(read_reading(out).skipped) == 600
