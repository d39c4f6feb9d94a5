"""What a failed save, or one that cannot tidy up after itself, does to a run: planted errors, in one process. Of
several processes: tests/multidevice/test_two_processes_saving.py."""

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest

from lifecycle.testing.notes import Notes
from lifecycle.training.checkpoints import agreement, commit, local
from lifecycle.training.checkpoints.agreement import AgreedError, by_writer, together
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.commit import Commit
from lifecycle.training.checkpoints.config import CheckpointConfig, LocalCheckpointConfig
from lifecycle.training.checkpoints.home import SharedFolder
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.checkpoints.retention import DELETED, MEASURED
from tests.checkpoints import fresh_state

# After a failed write, which is raised as tested here, Orbax drops its other writes without awaiting them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def save(checkpoints: Checkpointer, *steps: int, **measured: float) -> None:
    for step in steps:
        checkpoints.save(step, fresh_state(step), {}, {MEASURED: measured})
        checkpoints.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A folder that was renamed to be deleted is not empty, as on NFS while another host reads a file in it; until the
    function is called."""
    remove = os.rmdir

    def rmdir(path: Any, **settings: Any) -> None:
        if str(path).endswith(DELETED):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", rmdir)
        yield patched.undo


def test_a_checkpoint_that_cannot_be_deleted_is_told_once_and_fails_no_save(
    tmp_path: Path, busy: Callable[[], None]
) -> None:
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=1), told := Notes())
    save(checkpoints, 1, 2)
    assert names(tmp_path) == [f"1{DELETED}", "2"]
    checkpoints.settle()
    checkpoints.drop_after(1)  # as a run that goes back does
    assert checkpoints.latest_step() is None
    save(checkpoints, 2)
    (note,) = told.notes[:1]
    assert f"1{DELETED}" in note and "after a later save" in note and len(told.notes) == len(set(told.notes))
    busy()
    save(checkpoints, 3)
    assert names(tmp_path) == ["3"]
    checkpoints.close()


def test_a_damaged_older_checkpoint_fails_no_save_of_a_run_that_keeps_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=2, best="loss"), told := Notes())
    save(checkpoints, 1, 2, loss=1.0)
    (tmp_path / "1" / "meta" / "metadata").write_text("{cut")
    save(checkpoints, 3, loss=2.0)
    save(checkpoints, 4, loss=3.0)
    assert names(tmp_path) == ["2", "3", "4"] and not told.notes  # the best, and the last two
    checkpoints.close()


def test_a_complete_save_has_not_failed_because_others_could_not_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SharedFolder, "saved", away)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=1), told := Notes())
    save(checkpoints, 1, 2)
    assert checkpoints.latest_step() == 2
    assert [note for note in told.notes if "Input/output error" in note] == told.notes[:1] == told.notes
    checkpoints.close()


@pytest.mark.parametrize("error", [KeyError("params"), MemoryError(), OSError(errno.ENOSPC, "No space left")])
def test_any_error_is_a_failed_save_and_told_to_the_other_processes(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told: dict[str, str] = {}

    class Words:
        def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
            told[key] = value

    monkeypatch.setattr(commit, "words_of_job", Words)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(type(error)), Commit(max_s=1.0):
        raise error
    said = "process 1: [Errno 28] No space left" if isinstance(error, OSError) else f"process 1: {type(error).__name__}"
    assert len(told) == 3 and all(text.startswith(said) for text in told.values())


def test_what_fails_in_one_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk says what to do; an error of another process comes before what worked here."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for ask in (by_writer, together):
        with pytest.raises(AgreedError, match=r"No space left on device; free some space, .* run again"):
            ask(full)
        assert ask(lambda: [1, 2]) == [1, 2]
    monkeypatch.setattr(agreement, "from_first", lambda own: own or {"error": "process 1 on host-1: no answer"})
    with pytest.raises(AgreedError, match="process 1 on host-1: no answer"):
        together(lambda: "fetched")


def test_a_failed_save_frees_the_devices_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while Python collects no cycles: those of an error, its frames and Orbax's other writes hold them."""
    begin = ocp.CompositeCheckpointHandler.async_save

    async def full(*args: Any, **kwargs: Any) -> None:
        await begin(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "async_save", full)
    checkpoints, state = Checkpointer(tmp_path, CheckpointConfig(every=1)), fresh_state(width=64)
    gc.collect()
    gc.disable()
    try:
        before = sum(array.nbytes for array in jax.live_arrays())
        checkpoints.save(1, state, {}, {})
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.wait()
        assert sum(array.nbytes for array in jax.live_arrays()) <= before
    finally:
        gc.enable()
    checkpoints.close()


def test_a_last_local_checkpoint_that_could_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "write_part", full)
    settings = LocalCheckpointConfig(folder=str(tmp_path / "local"))
    checkpoints = LocalCheckpoints(settings, tmp_path / "out", "id", told := Notes())
    checkpoints.save(2, fresh_state(), {})
    checkpoints.close()
    (note,) = told.notes
    assert "could not write the last local checkpoint" in note and "No space left" in note


def test_how_long_a_save_may_take_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Words:
        def key_value_set(self, *_: object, **__: object) -> None: ...

        def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
            waited.append(timeout_ms)
            return ""

    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, max_save_minutes=90))
    assert checkpoints._options().timeout_secs == 5400
    checkpoints.close()
    monkeypatch.setattr(commit, "words_of_job", Words)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    Commit(max_s=5400).meet()
    assert waited == [5_400_000]
