"""Tagging and documents: a threshold selects again from the same tagged documents, a source is tagged again."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import MemoryStore

from lifecycle.cli.data_signatures import signatures
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.step_costs import StepCosts
from lifecycle.core.store import Store
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import read_documents
from lifecycle.data.selecting.earlier import earlier_corpora
from lifecycle.data.tagging import code_version as versions
from lifecycle.data.tagging import partition_store
from lifecycle.data.tagging.partitions import Partition
from lifecycle.stages import tagging
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.documents import record_of
from lifecycle.testing.notes import Notes

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        words = " ".join(
            f"the harbour of town{word} and that of city{word * number}" for word in range(10 + 5 * number)
        )
        (folder / f"{number}.txt").write_text(words)
    return folder


def made(corpus: Path, *overrides: str, told: Progress | None = None) -> dict[str, Artifact]:
    sources = f"data.sources=[{{name: own, path: {corpus}}}]"
    root = f"root={corpus.parent / 'runs'}"
    rules = "data.quality.repetition=null"
    config = load_config(RunConfig, DEBUG, [sources, root, rules, *overrides])
    return bring_up_to_date(config, ("documents",), told or Silent())


def kept(artifacts: dict[str, Artifact]) -> int:
    folder = artifacts["documents"].path
    return sum(1 for split in ("kept", "heldout") for _ in read_documents(folder, split, ["id"]))


def test_a_changed_threshold_does_not_tag_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(corpus)
    monkeypatch.setattr(tagging, "tag_documents", lambda *_: pytest.fail("tagged again"))
    after = made(corpus, "data.quality.gopher.min_words=200")
    assert after["tagging"].manifest == before["tagging"].manifest
    assert after["documents"].path != before["documents"].path
    assert 0 < kept(after) < kept(before) == 6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lists=[{{name: l, path: {file}, max: 0}}]", "other words would be found"),
        ("lists=[{{name: l, path: {file}, max: 0, of: addresses}}]", "is no id, hash, address"),
        ("classifiers=[{{name: c, path: {file}}}]", "no classifier"),
        ("rights.forget=[{file}]", "is no id, hash, address"),
        ("rights.opt_outs={{own: [{file}.none]}}", "No such file"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_before_the_sources_are_read(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    (file := corpus.parent / "list.txt").write_text("sh!t happens\n")
    monkeypatch.setattr(tagging, "fetch_sources", lambda *_: pytest.fail("read a source"))
    with pytest.raises(ConfigError, match=message):
        made(corpus, f"data.{setting.format(file=file)}")


def test_steps_whose_work_is_on_a_cluster_have_no_time() -> None:
    costs = StepCosts()
    costs.cpu_s |= {"rules": 1.0, "near_duplicates": 2.0}
    here, there = (record_of(costs, 9, is_here=is_here)["steps"] for is_here in (True, False))
    assert here["near_duplicates"] == {"cpu_s": 2.0, "bytes": 9} and here["rules"] == there["rules"]
    assert there["near_duplicates"] == {"cpu_s": None, "bytes": 9}


def test_what_decides_the_columns_tags_again(corpus: Path) -> None:
    before = made(corpus)
    (corpus / "0.txt").write_text((corpus / "0.txt").read_text() + " and another of them")
    after = made(corpus)
    assert after["tagging"].content_hash != before["tagging"].content_hash
    assert made(corpus, "data.pii.keep=[email]")["tagging"].path != after["tagging"].path


def test_a_run_leaves_out_what_an_earlier_one_has(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: dict[str, MemoryStore],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(corpus.parent / "cache"))
    earlier = made(corpus, "name=before")["documents"]
    (corpus / "0.txt").rename(corpus / "again.txt")
    for number in range(1, 6):
        words = " ".join(f"the ships of row{word * number} and that of port{word}" for word in range(10, 25))
        (corpus / f"{number}.txt").write_text(words)
    after = made(corpus, f"data.dedup.against=[{earlier.path}]")
    rows = list(read_documents(after["documents"].path, "removed", ["path", "reason", "detail"]))
    why = ("earlier_exact_duplicate", f"same text as own:0.txt of {earlier.path.name}")
    assert [(row["path"], row["reason"], row["detail"]) for row in rows] == [("again.txt", *why)]
    assert kept(after) == 5
    manifest = after["documents"].manifest
    assert manifest.input_hashes["against_0"] == earlier.content_hash
    moved = earlier.path.rename(corpus.parent / "moved")
    assert made(corpus, f"data.dedup.against=[{moved}]")["documents"].manifest == manifest
    for _ in range(2):  # made once, and found
        signatures(str(moved), corpus.parent / "hashes")
    shown, again = map(Path, capsys.readouterr().out.split())
    assert shown == again
    tables = [pq.read_table(file) for file in sorted(shown.glob("*.parquet"))]
    assert sum(map(len, tables)) == 6 and "text" not in tables[0].column_names
    (found,) = earlier_corpora(DedupConfig(against=(str(shown),)))
    assert found.name == shown.name and len(found.files) == len(tables)
    for file in moved.iterdir():
        Store("s3://bucket/earlier").upload(file, file.name)
    assert made(corpus, "data.dedup.against=[s3://bucket/earlier]")["documents"].manifest == manifest
    with pytest.raises(ConfigError, match=r"dedup\.rows=8, this run's of data\.dedup\.rows=6"):
        made(corpus, f"data.dedup.against=[{moved}]", "data.dedup.rows=6")
    with pytest.raises(ConfigError, match=r"dedup\.against: .*no finished artifact here"):
        made(corpus, f"data.dedup.against=[{earlier.path}]")


def shards(folder: Path, number: int = 25) -> Path:
    """Parquet files of ten rows each, and a file of JSON lines."""
    folder.mkdir()
    for shard in range(number):
        pq.write_table(
            pa.table({"text": [f"row {row} of shard {shard}" for row in range(10)]}), folder / f"{shard}.parquet"
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(40)))
    return folder


def notes_of(folder: Path, *overrides: str) -> list[str]:
    told = Notes()
    sources = f"data.sources=[{{name: own, path: {folder}}}]"
    config = load_config(RunConfig, DEBUG, [sources, f"root={folder.parent / 'runs'}", *overrides])
    bring_up_to_date(config, ("tagging",), told)
    return told.notes


def test_a_shard_and_a_row_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    folder = shards(tmp_path / "corpus")
    whole = (folder / "3.parquet").read_bytes()
    (folder / "3.parquet").write_bytes(whole[: len(whole) // 2])
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"text": \n')
    (folder / "empty.txt").touch()  # no loss
    files, rows = notes_of(folder)
    assert files.startswith(
        "1 of 27 files cannot be used: broken_file 1; first: own: 3.parquet: not a readable Parquet"
    )
    assert rows.startswith("1 of 281 rows cannot be used: broken_row 1; first: own: rows.jsonl:41: not JSON")


def test_too_large_a_share_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    folder = shards(tmp_path / "corpus", 9)
    (folder / "3.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"1 of 10 files .* 3\.parquet.* larger share than data\.max_skipped=0\.05"):
        notes_of(folder)
    assert len(notes_of(folder, "data.max_skipped=0.1")) == 1
    assert notes_of(folder, "data.max_skipped=0") == []  # it is finished: another limit makes nothing again


def test_a_file_with_other_columns_is_lost_alone_and_none_with_the_right_ones_is_an_error(tmp_path: Path) -> None:
    folder = shards(tmp_path / "corpus", 9)
    other = pa.table({"body": ["in another column"]})
    pq.write_table(other, folder / "3.parquet")
    (lost,) = notes_of(folder, "data.max_skipped=0.1")
    assert lost.startswith("1 of 10 files cannot be used: no_usable_row 1; first: own: 3.parquet: no column 'text'")
    for number in range(10):
        pq.write_table(other, folder / f"{number}.parquet")
    with pytest.raises(
        ConfigError, match=r"all 10 files like 0\.parquet: no column 'text'; columns: body; set text_col"
    ):
        notes_of(folder, "data.max_skipped=1")


def test_failed_files_are_read_again_by_other_code(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = partition_store.tag_files

    def failing(partition: Partition) -> Any:
        if "0.txt" in [entry.path for entry in partition.files]:
            raise RecursionError("too deep")
        return real(partition)

    whole = made(corpus, "name=whole")["tagging"]
    with monkeypatch.context() as patch:
        patch.setattr(partition_store, "tag_files", failing)
        broken = made(corpus, "data.max_skipped=1")
        assert broken["tagging"].stats["failed"] == 1 and kept(broken) == 5
    assert made(corpus)["tagging"].manifest == broken["tagging"].manifest  # by the same code
    monkeypatch.setattr(versions, "source_version", lambda _: "repaired")
    told = Notes()
    after = made(corpus, told=told)
    folder = broken["tagging"].path.name
    assert told.notes[0] == f"{folder}: 1 of its files had failed, in other code: reading the sources again"
    assert after["tagging"].path == broken["tagging"].path and "failed" not in after["tagging"].stats
    assert after["tagging"].content_hash == whole.content_hash and kept(after) == 6
    monkeypatch.setattr(versions, "source_version", lambda _: "newer")
    assert made(corpus)["tagging"].manifest == after["tagging"].manifest  # nothing had failed


def test_no_broken_files_no_words(tmp_path: Path) -> None:
    assert notes_of(shards(tmp_path / "corpus")) == []
