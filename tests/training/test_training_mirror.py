"""Copies of checkpoints in a store: whole at every moment, wherever the copying process is killed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from lifecycle.core.artifact import ArtifactError
from lifecycle.core.files import FILES
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import read_log
from lifecycle.core.store import Store, StoreError
from lifecycle.testing.notes import Notes
from lifecycle.testing.waiting import wait_until
from lifecycle.training.checkpoints.integrity import damage, steps_in, write_files
from lifecycle.training.checkpoints.mirror import Mirror
from lifecycle.training.checkpoints.weights import FROZEN

NAME = "checkpoints"


def checkpoint(folder: Path, step: int | str, content: str = "") -> None:
    """What a checkpointer leaves of a step, and the log up to it."""
    path = folder / NAME / str(step)
    (path / "params" / "d").mkdir(parents=True)
    (path / "params" / "d" / "array").write_text(f"{content}weights of {step}")
    (path / "meta").write_text("{}")
    write_files(path)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(1, step + 1))
                                          if isinstance(step, int) else "")  # fmt: skip


def mirror(store: Store, folder: Path, progress: Any = None) -> Mirror:
    return Mirror(store, folder, NAME, progress or Silent())


def restored(store: Store, folder: Path) -> int | None:
    """The step that another machine goes on from; its checkpoint must be whole, and its log up to it."""
    folder.mkdir()
    mirror(store, folder).restore()
    step = max(steps_in(folder / NAME), default=None)
    if step is not None:
        assert damage(folder / NAME / str(step)) is None
        assert [record["step"] for record in read_log(folder / "metrics.jsonl")][:step] == list(range(1, step + 1))
    return step


class Killed(Exception):
    """What ends the process that copies."""


class DyingStore(Store):
    """Fails at a call that changes something, counted from 1, before or after it has had its effect."""

    calls, at, is_done = 0, 0, False

    def _step(self) -> None:
        DyingStore.calls += 1
        if DyingStore.calls == DyingStore.at:
            raise Killed

    def write(self, name: str, content: bytes) -> None:
        self._step()
        super().write(name, content)

    def upload(self, file: Path, name: str) -> None:
        self._step()
        super().upload(file, name)

    def delete(self, names: Any) -> None:
        for name in names:
            self._step()
            super().delete([name])


def test_a_kill_at_any_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Of steps 10, then 20, when 10 is deleted; then a session that went back to 10 has a 20 of other content."""

    def work(objects: MemoryStore, at: int, folder: Path) -> int:
        DyingStore.calls, DyingStore.at = 0, at
        store = DyingStore("mem://run", objects)
        checkpoint(folder, 10)
        mirror(store, folder).copy()
        copied = DyingStore.calls
        checkpoint(folder, 20)
        (folder / NAME / "10").rename(folder / "gone")
        mirror(store, folder).copy()
        checkpoint(folder / "later", 10)
        checkpoint(folder / "later", 20, "other ")
        mirror(store, folder / "later").copy()
        return copied

    objects = MemoryStore()
    first = work(objects, 0, tmp_path / "whole")
    total = DyingStore.calls
    assert {name.split("/")[1] for name in Store("mem://run", objects).list(NAME)} == {"10", "20"}
    assert restored(Store("mem://run", objects), tmp_path / "elsewhere") == 20
    assert (tmp_path / "elsewhere" / NAME / "20" / "params" / "d" / "array").read_text() == "other weights of 20"
    for at in range(1, total + 1):
        objects = MemoryStore()
        with pytest.raises(Killed):
            work(objects, at, tmp_path / f"killed {at}")
        found = restored(Store("mem://run", objects), tmp_path / f"goes on {at}")
        assert found in ((None, 10) if at <= first else (10, 20)), at
    assert total > first > 3


class CutStore(Store):
    """Ends the process that fetches at a download, counted from 1, before or after it has had its effect."""

    calls, at, is_after = 0, 0, False

    def download(self, name: str, file: Path) -> str:
        CutStore.calls += 1
        is_end = CutStore.calls == CutStore.at
        if is_end and not CutStore.is_after:
            raise Killed
        found = super().download(name, file)
        if is_end:
            raise Killed
        return found


@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_while_it_is_fetched_leaves_a_log_that_covers_the_checkpoints(tmp_path: Path, is_after: bool) -> None:
    objects = MemoryStore()
    for step in (10, 20):
        checkpoint(tmp_path / "one", step)
    (tmp_path / "one" / "times.jsonl").write_text('{"step": 20}\n')
    mirror(Store("mem://run", objects), tmp_path / "one").copy()
    CutStore.is_after, total, at = is_after, 0, 0
    for at in range(100):
        folder = tmp_path / f"killed {at}"
        checkpoint(folder, 5)  # of a session before it moved
        CutStore.calls, CutStore.at = 0, at
        try:
            mirror(CutStore("mem://run", objects), folder).restore()
            total += 1
        except Killed:
            steps = [record["step"] for record in read_log(folder / "metrics.jsonl")]
            newest = max(steps_in(folder / NAME))
            assert steps[:newest] == list(range(1, newest + 1)), at
            assert newest == 5 or (folder / "times.jsonl").is_file(), at
            mirror(Store("mem://run", objects), folder).restore()
        assert steps_in(folder / NAME) == [5, 10, 20]
        assert len(list(read_log(folder / "metrics.jsonl"))) == 20
        if total == 2:  # not killed: at 0, and once all downloads were passed
            break
    assert at > 5


def test_a_checkpoint_that_is_damaged_in_the_store_is_named_and_the_older_one_used(tmp_path: Path) -> None:
    store, told = Store("mem://run", MemoryStore()), Notes()
    for step in (10, 20):
        checkpoint(tmp_path, step)
        mirror(store, tmp_path).copy()
    store.write(f"{NAME}/20/params/d/array", b"WEIGHTS OF 20")
    folder = tmp_path / "elsewhere"
    mirror(store, folder, told).restore()
    assert steps_in(folder / NAME) == [10]
    assert [note for note in told.notes if "step 20 cannot be used" in note and "params/d/array" in note]
    checkpoint(folder, 20, "again ")
    mirror(store, folder).copy()
    assert restored(store, tmp_path / "later") == 20


def test_what_is_here_and_newer_stays(tmp_path: Path) -> None:
    store = Store("mem://run", MemoryStore())
    checkpoint(tmp_path, 10)
    mirror(store, tmp_path).copy()
    checkpoint(tmp_path, 20, "local ")
    mirror(store, tmp_path).restore()
    assert (tmp_path / NAME / "20" / "params" / "d" / "array").read_text() == "local weights of 20"
    assert len(list(read_log(tmp_path / "metrics.jsonl"))) == 20


def test_a_run_that_moves_takes_the_older_checkpoints_along(tmp_path: Path) -> None:
    """Also one that was overtaken while the store was slow; what is kept stays in the store."""
    store = Store("mem://run", MemoryStore())
    for step in (10, 20, 30):
        checkpoint(tmp_path / "one", step)
    mirror(store, tmp_path / "one").copy()
    assert restored(store, tmp_path / "two") == 30
    assert steps_in(tmp_path / "two" / NAME) == [10, 20, 30]
    checkpoint(tmp_path / "two", 40)
    mirror(store, tmp_path / "two").copy()
    assert {name.split("/")[1] for name in store.list(NAME)} == {"10", "20", "30", "40"}


def test_a_step_saved_again_in_the_same_session_is_copied_again(tmp_path: Path) -> None:
    store = Store("mem://run", MemoryStore())
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20)
    copies = mirror(store, tmp_path)
    copies.copy()
    (tmp_path / NAME / "20").rename(tmp_path / "gone")
    checkpoint(tmp_path, 20, "again ")
    copies.copy()
    assert store.read(f"{NAME}/20/params/d/array") == b"again weights of 20"
    assert restored(store, tmp_path / "elsewhere") == 20


def test_what_is_damaged_here_hides_and_replaces_nothing(tmp_path: Path) -> None:
    store, told = Store("mem://run", MemoryStore()), Notes()
    for step in (10, 20):
        checkpoint(tmp_path, step)
    mirror(store, tmp_path).copy()
    (tmp_path / NAME / "10" / "files.json").write_text("{cut")
    (tmp_path / NAME / "20" / "params" / "d" / "array").write_text("WEIGHTS OF 20")
    copies = mirror(store, tmp_path, told)
    copies.copy()
    assert b"cut" not in store.read(f"{NAME}/10/files.json")
    copies.restore()
    assert [damage(tmp_path / NAME / step) for step in ("10", "20")] == [None, None]
    assert (tmp_path / NAME / "20.damaged" / "params" / "d" / "array").read_text() == "WEIGHTS OF 20"
    assert (tmp_path / NAME / "10.damaged" / "files.json").read_text() == "{cut"
    assert [note for note in told.notes if "20: damaged (params/d/array has changed); using the store's" in note]


def test_frozen_parameters_come_along(tmp_path: Path) -> None:
    store = Store("mem://run", MemoryStore())
    checkpoint(tmp_path, "frozen")
    checkpoint(tmp_path, 10)
    mirror(store, tmp_path).copy()
    assert restored(store, tmp_path / "elsewhere") == 10
    assert damage(tmp_path / "elsewhere" / NAME / "frozen") is None


def test_a_store_that_is_away_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = Store("mem://run", MemoryStore()), Notes()
    monkeypatch.setattr("lifecycle.training.checkpoints.mirror.LOOK_EVERY_S", 0.01)
    away, tries, upload = [True], [0], Store.upload

    def refuse(self: Store, file: Path, name: str) -> None:
        tries[0] += 1
        if away[0]:
            raise StoreError("mem://run: no answer")
        upload(self, file, name)

    monkeypatch.setattr(Store, "upload", refuse)
    with mirror(store, tmp_path, told).running():
        checkpoint(tmp_path, 10)
        wait_until(lambda: tries[0] > 8)
        away[0] = False
        wait_until(lambda: store.head(f"{NAME}/10/files.json") is not None)
    assert told.notes == ["checkpoints are not copied: mem://run: no answer"]


def test_a_job_that_is_stopped_copies_its_last_checkpoint(tmp_path: Path) -> None:
    store = Store("mem://run", MemoryStore())
    with pytest.raises(InterruptedError), mirror(store, tmp_path).running():
        checkpoint(tmp_path, 10)
        raise InterruptedError("stopped")
    assert restored(store, tmp_path / "elsewhere") == 10


@pytest.mark.long
@pytest.mark.xdist_group("s3")
def test_a_killed_job_goes_on_elsewhere_and_ends_with_the_same_weights(tmp_path: Path, bucket: str) -> None:
    def train(out: str, store: str, *kill: int) -> subprocess.CompletedProcess[str]:
        words = [str(tmp_path / out), f"{bucket}/{store}", *map(str, kill)]
        command = [sys.executable, "-m", "tests.training.mirrored_job", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = train("whole", "whole")
    assert whole.returncode == 0, whole.stderr
    assert train("one", "moved", 5, 3).returncode == -9
    assert train("two", "moved", 8, 6).returncode == -9
    ended = train("three", "moved")
    assert "going on from its checkpoint of step 6" in ended.stdout, ended.stderr
    assert ended.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    logs = [
        [(record["step"], record["loss"]) for record in read_log(tmp_path / out / "metrics.jsonl") if "loss" in record]
        for out in ("whole", "three")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 10
    store = Store(f"{bucket}/moved")
    mirror(store, tmp_path / "three").copy()  # a run that ends does not wait for it: its artifact is copied whole
    assert {name.split("/")[1] for name in store.list(NAME)} == {"9", "10"}


def test_what_is_held_is_listed_only_when_other_steps_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks every second, and a checkpoint may be thousands of objects."""
    store, folder = Store("mem://run", MemoryStore()), tmp_path
    checkpoint(folder, 10)
    copies = mirror(store, folder)
    copies.copy()
    removed: list[set[str]] = []
    monkeypatch.setattr(copies, "_remove_others", removed.append)
    copies.copy()
    assert removed == []
    checkpoint(folder, 20)
    copies.copy()
    copies.copy()
    assert removed == [{FROZEN, "10", "20"}]


@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_a_list_of_files_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    store = Store("mem://run", MemoryStore())
    store.write(f"{NAME}/10/{FILES}", json.dumps({name: [1, "0" * 64]}).encode())
    with pytest.raises(ArtifactError, match="names a file outside its folder"):
        mirror(store, tmp_path)._fetch("10")
