"""Partitions: their keys, what is made again after a kill, a change or damage."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import data_config
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.core.step_costs import step_costs
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.filters import tagging_steps
from lifecycle.data.reading import row_parts
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import SourceFile, list_files
from lifecycle.data.tagging import code_version as versions
from lifecycle.data.tagging import partition_store, partitions
from lifecycle.data.tagging.code_version import code_version, source_version
from lifecycle.data.tagging.partition_store import WRITE, PartitionStore
from lifecycle.data.tagging.partitions import READ, Partition, partitions_of
from lifecycle.data.tagging.tagging import JOIN, read_reading, tag_documents
from lifecycle.testing.waiting import LIMIT_S
from tests.data.test_data_pipeline import essay, hashes

SMALL = 6000  # bytes of a partition


def config_of(path: Path | str, **settings: Any) -> DataConfig:
    return data_config(str(path), **{"partition_bytes": SMALL, **settings})


def essays(folder: Path) -> Path:
    """A new folder with sixty of them."""
    folder.mkdir()
    for number in range(60):
        (folder / f"essay{number:02d}.txt").write_text(essay(number))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return essays(tmp_path / "corpus")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, as they are."""
    read: list[str] = []
    real = partition_store.tag_files

    def tag_files(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
        read.extend(entry.path for entry in partition.files)
        return real(partition)

    monkeypatch.setattr(partition_store, "tag_files", tag_files)
    return read


def tag(corpus: Path, name: str = "out", **changes: Any) -> Path:
    out = corpus.parent / name
    out.mkdir(exist_ok=True)
    tag_documents(config_of(corpus, **{"workers": 1, **changes}), corpus.parent / "partitions", out, Silent())
    return out


def stored(corpus: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (corpus.parent / "partitions").glob("*.parquet")}


def test_a_second_run_reads_nothing_and_makes_the_same(corpus: Path, made: list[str]) -> None:
    first = hashes(tag(corpus))
    assert len(made) == 60 and len(stored(corpus)) > 10
    made.clear()
    assert hashes(tag(corpus, "again")) == first and not made


def test_steps_cost_what_they_do_in_this_run(corpus: Path) -> None:
    """Partitions that were there before are neither input nor time."""
    with step_costs() as whole:
        tag(corpus)
    steps = [step.name for step in tagging_steps(config_of(corpus))]
    assert [*whole.cpu_s] == [READ, *steps, WRITE, JOIN] and min(whole.cpu_s.values()) > 0
    assert whole.num_bytes == sum(path.stat().st_size for path in corpus.iterdir())
    with step_costs() as again:
        tag(corpus, "again")
    assert [*again.cpu_s] == [JOIN] and not again.num_bytes
    (corpus / "essay30a.txt").write_text(essay(100))
    with step_costs() as more:
        tag(corpus, "with_new")
    assert set(more.cpu_s) == set(whole.cpu_s) and 0 < more.num_bytes < whole.num_bytes / 2


def test_a_clock_that_jumps_changes_nothing(corpus: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 1970 and of 2096, sources and partitions, and an hour that comes again."""
    first = hashes(tag(corpus))
    for number, path in enumerate(sorted(corpus.parent.rglob("*"))):
        os.utime(path, (4e9 * (number % 2), 4e9 * (number % 2)))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    made.clear()
    assert hashes(tag(corpus, "again")) == first and not made
    (corpus / "essay07.txt").write_text(essay(101))
    os.utime(corpus / "essay07.txt", (0, 0))  # newer text of an older time
    assert hashes(tag(corpus, "changed")) != first and "essay07.txt" in made and len(made) < 25


def test_new_and_changed_files_are_read_with_few_others(corpus: Path, made: list[str]) -> None:
    tag(corpus)
    made.clear()
    (corpus / "essay30a.txt").write_text(essay(100))
    tag(corpus, "with_new")
    assert "essay30a.txt" in made and len(made) < 25
    made.clear()
    (corpus / "essay07.txt").write_text(essay(101))
    tag(corpus, "with_changed")
    assert "essay07.txt" in made and len(made) < 10
    assert len(stored(corpus)) == len(list(partitions_of(list_files(config_of(corpus)), config_of(corpus))))


def test_what_decides_the_columns_is_in_the_key(corpus: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tag(corpus)
    for changes in (
        {"quality": {"gopher": {"min_words": 5}}},
        {"heldout_fraction": 0.2},
        {"max_skipped": 0.5},
    ):  # of selection
        made.clear()
        tag(corpus, "selected", **changes)
        assert not made
    tag(corpus, "masked", pii={"keep": ["email"]})
    assert len(made) == 60
    made.clear()
    monkeypatch.setattr(partitions, "code_version", lambda _: "other code")
    tag(corpus, "by_other_code", pii={"keep": ["email"]})
    assert len(made) == 60


def test_another_source_reads_nothing_of_the_first(corpus: Path, made: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "more.txt").write_text(essay(200))
    tag(corpus)
    made.clear()
    sources = [{"name": "mine", "path": str(corpus), "license": "CC0"}, {"name": "other", "path": str(other)}]
    tag(corpus, "both", sources=sources)
    assert made == ["more.txt"]


SCRIPT = """
import sys
from pathlib import Path
from document_tables import data_config
from lifecycle.core.progress import Silent
from lifecycle.data.tagging.tagging import tag_documents
corpus, kept, out = map(Path, sys.argv[1:])
tag_documents(data_config(str(corpus), workers=2, partition_bytes=6000), kept, out, Silent())
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_makes_the_same_bytes(corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed twice with SIGKILL, workers and all: no finished partition is made again."""
    monkeypatch.setattr("lifecycle.data.tagging.engine.POOL_BYTES", 0)
    out, kept = tmp_path / "killed", tmp_path / "partitions"
    out.mkdir()
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(corpus), str(kept), str(out)]
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    before: dict[str, int] = {}
    for wanted in (3, 8):
        run = subprocess.Popen(command, env=os.environ | paths, start_new_session=True)
        limit = time.monotonic() + LIMIT_S
        while len(stored(corpus)) < wanted and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        after = stored(corpus)
        assert wanted <= len(after) and before.items() <= after.items()
        before = after
    subprocess.run(command, env=os.environ | paths, check=True)
    assert before.items() <= stored(corpus).items() and not list(kept.glob("*.tmp"))
    for path in kept.iterdir():
        path.unlink()
    assert hashes(out) == hashes(tag(corpus, "whole"))


def test_a_damaged_partition_is_made_again(corpus: Path, made: list[str]) -> None:
    first = hashes(tag(corpus))
    files = sorted((corpus.parent / "partitions").iterdir())
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])  # no footer
    middle = bytearray(files[1].read_bytes())
    middle[len(middle) // 3] ^= 255  # a page
    files[1].write_bytes(middle)
    made.clear()
    assert hashes(tag(corpus, "mended")) == first
    assert 0 < len(made) < 24


def test_a_file_that_changes_while_it_is_read_ends_the_run(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = partition_store.tag_files

    def tag_files(partition: Partition) -> tuple[pa.Table, list[Skipped]]:
        found = real(partition)
        with (corpus / "essay20.txt").open("a") as file:
            file.write("More.\n")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(partition_store, "tag_files", tag_files)
        with pytest.raises(ConfigError, match=r"source 'mine': essay20\.txt changed while it was read"):
            tag(corpus)
    assert not read_reading(tag(corpus)).skipped


@contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_ends_the_run_and_is_no_fault_of_the_data(corpus: Path, made: list[str]) -> None:
    with files_of_at_most(2000), pytest.raises(OSError, match="File too large"):
        tag(corpus)
    assert not stored(corpus) and len(made) < 10
    assert not read_reading(tag(corpus)).skipped


def rows_of(folder: Path, number: int = 300) -> list[dict[str, Any]]:
    """The same rows as JSON Lines without a last line end, and as Parquet in groups of seven."""
    rows = [{"text": essay(seed, 3), "url": f"u{seed}"} for seed in range(number)]
    rows[17]["text"], rows[130]["text"] = "", 5 * essay(1000, 40)  # one empty, and one longer than a part
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=7)
    return rows


def documents(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("tagged-*")) for row in pq.read_table(path).to_pylist()]


def test_parts_of_large_row_files_make_the_documents_of_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows_of(folder)
    parts = tag(folder, "parts", max_skipped=0.1)
    assert len(stored(folder)) > 3
    whole = tag(folder, "whole", max_skipped=0.1, partition_bytes=10**9)
    assert len(stored(folder)) == 1 and hashes(parts) == hashes(whole)
    paths = [row["path"] for row in documents(parts)]
    assert len(paths) == 2 * 299 and paths[16:18] == ["rows.jsonl:17", "rows.jsonl:19"]


def test_rows_added_to_a_file_leave_its_earlier_parts(tmp_path: Path, made: list[str]) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows_of(folder)
    (folder / "rows.parquet").unlink()
    tag(folder)
    before = len(made)
    made.clear()
    with (folder / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"text": essay(2000)}) + "\n")
    assert len(documents(tag(folder, "longer"))) == 300 and len(made) == 1 < before


def test_a_renamed_column_is_another_content(tmp_path: Path) -> None:
    """Its pages are the same bytes; its name is behind them."""
    folder = tmp_path / "rows"
    folder.mkdir()
    keys: list[list[str]] = []
    for name in ("text", "body"):
        column = pa.table({name: [essay(seed, 9) for seed in range(90)]})
        pq.write_table(column, folder / "rows.parquet", row_group_size=7, compression="none", use_dictionary=False)
        config = config_of(folder)
        keys.append([partition.key for partition in partitions_of(list_files(config), config)])
    assert len(keys[0]) > 1 and not set(keys[0]) & set(keys[1])


@given(st.lists(st.integers(0, 90), max_size=60), st.integers(1, 200), st.booleans())
def test_parts_are_whole_lines_in_order(lengths: list[int], size: int, has_last_end: bool) -> None:
    text = b"\n".join(b"x" * length for length in lengths) + b"\n" * has_last_end
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_parts, "CHUNK", 37)
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(text)
        parts = row_parts.row_parts(path, "jsonl", size)
    if not parts:
        return
    assert [part.begin for part in parts] == [0, *(part.end for part in parts[:-1])] and parts[-1].end == len(text)
    for part in parts:
        assert part.first_row == text[: part.begin].count(b"\n") and (part.begin == 0 or text[part.begin - 1] == 10)
        assert part.num_rows == len(text[part.begin : part.end].removesuffix(b"\n").split(b"\n"))


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=80), st.randoms(use_true_random=False))
def test_a_new_file_changes_few_partitions(sizes: list[int], chance: random.Random) -> None:
    """Every file is in one partition, in order; a further file moves the boundaries next to it only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "file_size", lambda entry: len(entry.format))

        def cut(names: list[tuple[str, int]]) -> list[tuple[str, ...]]:
            files = [SourceFile(0, Path(name), name, " " * size) for name, size in names]
            return [tuple(entry.path for entry in part.files) for part in partitions_of(files, config_of("."))]

        names = [(f"{number:03d}", size) for number, size in enumerate(sizes)]
        before = cut(names)
        assert [name for part in before for name in part] == [name for name, _ in names]
        at = chance.randrange(len(names) + 1)
        after = cut([*names[:at], (f"{at - 1:03d}+", 3000), *names[at:]])
        ends = {part[-1] for part in before if part[-1] <= f"{at - 1:03d}"}
        assert ends - {before[-1][-1]} <= {part[-1] for part in after} | {f"{at - 1:03d}"}


def test_the_version_of_the_code_covers_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "lifecycle.data.tagging.partitions"
    before = code_version(module)
    real = versions.source_of

    def forget() -> None:
        code_version.cache_clear()
        source_version.cache_clear()

    for name, changes in (("lifecycle.data.measures.compiled_prose", True), ("lifecycle.data.selecting.dedup", False)):
        forget()
        monkeypatch.setattr(versions, "source_of", lambda asked, n=name: real(asked) + b"#" * (asked == n))
        assert (code_version(module) != before) == changes
    forget()


def test_a_store_deletes_only_what_is_not_kept(corpus: Path) -> None:
    tag(corpus)
    store = PartitionStore(corpus.parent / "partitions")
    config = config_of(corpus)
    every = list(partitions_of(list_files(config), config))
    store.keep(every[:2])
    assert stored(corpus).keys() == {f"{partition.key}.parquet" for partition in every[:2]}
