"""Bad input ends with status 1 and one message, what happened, where and how to mend it, and nothing is lost."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from command_line import Debug

from lifecycle.data.documents import read_documents

ONE_TOPIC = 10_000  # bytes: longer topics of the manual are not taken


def source(folder: Path, *extra: str) -> tuple[str, ...]:
    """Settings that read documents from a folder in place of the standard library."""
    return (f"data.sources=[{{name: own, path: {folder}}}]", *extra)


def corpus(folder: Path, count: int = 12) -> Path:
    """Documents that pass every filter: topics of Python's own manual."""
    folder.mkdir(parents=True)
    short = sorted((text for text in topics.values() if len(text.encode()) < ONE_TOPIC), key=len, reverse=True)
    for number, text in enumerate(short[:count]):
        (folder / f"{number}.txt").write_text(text)
    return folder


def test_a_mistyped_key_is_told_with_the_nearest(fresh: Debug) -> None:
    assert "train.pretrain.stepz: no such setting; did you mean 'steps'?" in fresh.fail("run", "train.pretrain.stepz=3")
    assert not fresh.folder.exists()


def test_a_mesh_that_does_not_divide_is_told_with_axis_and_nearest(fresh: Debug) -> None:
    message = fresh.fail("run", "mesh.tensor=3")
    assert "mesh.tensor=3 does not divide model.num_heads=2" in message and "mesh.tensor=2" in message


def test_a_mesh_of_more_devices_than_there_are(fresh: Debug) -> None:
    message = fresh.fail("run", "mesh.fsdp=2")
    assert not list(fresh.folder.glob("tagging-*"))  # before anything was run
    assert "needs 2 devices, this job has 1" in message and "mesh.fsdp=1" in message


def test_a_root_that_is_a_file_and_a_lock_that_is_a_folder_are_told(fresh: Debug) -> None:
    (fresh.folder / ".lock").mkdir(parents=True)
    assert ".lock" in fresh.fail("data")
    file = fresh.root / "file"
    file.touch()
    assert f"{file}" in Debug(file).fail("data")


def test_an_empty_corpus(fresh: Debug, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = fresh.fail("data", *source(tmp_path / "empty"))
    assert "source 'own': no file in" in message and "data.sources" in message


def test_a_corpus_of_which_the_filters_leave_nothing(fresh: Debug, tmp_path: Path) -> None:
    message = fresh.fail("data", *source(corpus(tmp_path / "own")), "data.quality.gopher.min_words=5000")
    assert "12 documents from 12 files" in message
    assert "too_few_words 12" in message and "change data.quality.gopher.min_words" in message


@pytest.mark.long  # the rooms' own tests: `data/test_data_extract.py`, `test_data_streams.py`
def test_undecodable_and_gigantic_files_are_skipped_counted_and_listed(fresh: Debug, tmp_path: Path) -> None:
    folder = corpus(tmp_path / "own")
    (folder / "picture.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "gigantic.txt").write_text("All of it is too long. " * 1000)
    settings = source(folder, f"data.max_document_bytes={ONE_TOPIC}")
    told = fresh.fail("tokenizer", *settings)  # too many of them
    assert "2 of 14 files cannot be used: too_large 2" in told and "larger share than data.max_skipped=0.05" in told
    assert "2 of 14 files cannot be used" in fresh.succeed("tokenizer", *settings, "data.max_skipped=0.5")
    documents = fresh.artifact("documents")
    funnel = json.loads((documents.path / "funnel.json").read_text())
    for text in (json.dumps(funnel), json.dumps(documents.stats)):
        assert "picture.txt" in text and "gigantic.txt" in text
    kept = list(read_documents(documents.path, "kept", ["path"]))
    assert kept and not {"picture.txt", "gigantic.txt"} & {row["path"] for row in kept}


@pytest.mark.long  # `stages/test_stages_own_rows.py` has the messages
def test_a_broken_row_is_told_with_its_line(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents")
    good, other = (json.dumps({"prompt": f"What is two and {n}?", "completion": "Four."}) for n in ("two", "2"))
    rows = tmp_path / "own.jsonl"
    rows.write_text(f"{good}\n{good[:-1]}\n")
    assert f"{rows}:2" in run.fail("run", "--until=sft", f"rows.chat=[{rows}]")
    rows.write_text(f"{good}\n{other}\n")  # mended: the same command goes on, and reads it again
    run.succeed("data", f"rows.chat=[{rows}]")
    assert run.artifact("rows").stats["own"]["chat"]["kept"] == 2


def test_rows_without_an_answer_to_learn_are_told(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens", "pretrain")
    rows = tmp_path / "own.jsonl"
    rows.write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"Hello {i}"}]}) + "\n" for i in range(40))
    )
    own = ("rows.docstrings=false", f"rows.chat=[{rows}]", f"rows.pairs=[{_pairs(tmp_path)}]", "evaluate=null")
    message = run.fail("run", "--until=sft", *own)
    assert "assistant" in message and ".jsonl" in message


def _pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"prompt": f"What is {i} and one?", "chosen": f"It is {i + 1}.", "rejected": "No."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.long
def test_a_damaged_checkpoint_is_not_used(undisturbed: Debug, tmp_path: Path) -> None:
    """A finished stage whose checkpoint was cut short is made again, and comes out as it was."""
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens", "pretrain")
    before = run.artifact("pretrain").content_hash
    largest = max((run.artifact("pretrain").path / "checkpoints").rglob("*"), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert "to run" in run.succeed("plan")
    run.succeed("run", "--until=pretrain")
    assert run.artifact("pretrain").content_hash == before


def test_a_damaged_shard_is_made_again(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens", "pretrain", "rows")
    before = {name: artifact.manifest for name, artifact in run.artifacts().items()}
    (shard,) = run.artifact("tokens").path.glob("train-*.array_record")
    os.truncate(shard, shard.stat().st_size // 2)
    run.succeed("run", "--until=pretrain")
    after = {name: artifact.manifest for name, artifact in run.artifacts().items()}
    changed = {name for name in before if after[name] != before[name]}
    assert {before[name].stage for name in changed} == {"tokens"}  # the same content again: nothing else had to run
    assert all(after[name].content_hash == before[name].content_hash for name in before)


@pytest.mark.long
def test_another_tokenizer_in_the_place_of_the_one_that_was_used(undisturbed: Debug, tmp_path: Path) -> None:
    """Same sizes, other content: the artifact is made again before training uses it."""
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens")
    model = run.artifact("tokenizer").path / "tokenizer.model"
    content = model.read_bytes()
    model.write_bytes(content.replace(b"ing", b"qzj", 1))
    assert "tokenizer.model changed after it was finished; making it again" in run.succeed("run", "--until=pretrain")
    assert run.artifact("tokenizer").content_hash == undisturbed.artifact("tokenizer").content_hash
    assert model.read_bytes() == content


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs privileges: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["documents", pytest.param("pretrain", marks=pytest.mark.long)])
def test_a_full_disk_is_told_and_with_room_again_the_run_goes_on(
    undisturbed: Debug, small_disk: Path, stage: str
) -> None:
    if stage == "documents":
        run = Debug(small_disk)
    else:
        run = undisturbed.copy(small_disk, "tagging", "documents", "tokenizer", "tokens")
    filler = small_disk / "filler"
    left = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(left - 300_000))  # of which the first checkpoint of 1 MB finds no place
    message = run.fail("run", f"--until={stage}")
    assert "No space left" in message or "ENOSPC" in message or "RESOURCE_EXHAUSTED" in message
    assert "again" in message
    filler.unlink()
    run.succeed("run", f"--until={stage}")
    assert run.artifact(stage).content_hash == undisturbed.artifact(stage).content_hash
