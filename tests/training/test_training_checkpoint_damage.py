"""Checkpoints that are damaged or were never whole: passed over and told, never restored; a failed save is raised."""

import asyncio
import gc
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle.testing.waiting import wait_until
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.continued import load_data_state, load_opt_state
from lifecycle.training.checkpoints.integrity import CheckpointError, steps_in, write_files
from lifecycle.training.checkpoints.weights import load_params, read_params
from tests.checkpoints import Notes, assert_bit_equal, fresh_state, save_steps

# After a failed write, which is raised as tested here, Orbax drops its other writes without awaiting them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def largest_file(folder: Path) -> Path:
    """The largest of the arrays' files."""
    return max((path for path in folder.glob("*/**/d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    os.truncate(largest_file(folder), 10)


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def forget_the_list(folder: Path) -> None:
    (folder / "files.json").unlink()


def cut_the_list(folder: Path) -> None:
    os.truncate(folder / "files.json", 10)


def edit_the_list(folder: Path) -> None:
    (folder / "files.json").write_text('{"params/manifest.ocdbt": 5}')


DAMAGES = {
    truncate: "has 10 bytes of",
    flip_a_bit: "has changed",
    remove_a_file: "is missing",
    forget_the_list: "no files.json",
    cut_the_list: "files.json is not a list of files",
    edit_the_list: "files.json is not a list of files",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_passed_over_and_told(tmp_path: Path, damage: Any) -> None:
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "2")
    notes = Notes()
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9), notes)
    assert checkpoints.latest_step() == 1
    (told,) = notes.texts
    assert str(tmp_path / "2") in told and DAMAGES[damage] in told and "resuming from step 1" in told
    restored, data, _ = checkpoints.restore(fresh_state())
    assert data == {"step": 1}
    assert_bit_equal(restored, fresh_state(1))
    checkpoints.save(2, fresh_state(2), {}, {})  # the step can be saved again
    checkpoints.close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(2)["params"])


def test_weights_need_no_other_item(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    shutil.rmtree(tmp_path / "1" / "opt_state")
    params = fresh_state()["params"]
    assert_bit_equal(load_params(tmp_path, params), fresh_state(1)["params"])
    assert_bit_equal(load_params(tmp_path, params, 1), fresh_state(1)["params"])
    with pytest.raises(CheckpointError, match=r"opt_state/.* is missing"):
        load_data_state(tmp_path, 1)


def test_an_average_that_is_gone_is_not_replaced_by_the_parameters(tmp_path: Path) -> None:
    params = fresh_state()["params"]
    checkpoints = Checkpointer(tmp_path, CheckpointConfig())
    opt_state = {"average": {"weights": fresh_state(2)["params"]}, "optimizer": fresh_state()["opt_state"]}
    checkpoints.save(1, {"params": params, "opt_state": opt_state}, {}, {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "1" / "params")
    assert_bit_equal(load_params(tmp_path, params), fresh_state(2)["params"])
    shutil.rmtree(tmp_path / "1" / "average")
    with pytest.raises(CheckpointError, match=r"average/.* is missing"):
        load_params(tmp_path, params)


def test_a_step_damaged_twice_is_set_aside_twice(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for _ in range(2):
        save_steps(tmp_path, 2)
        truncate(tmp_path / "2")
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "2.damaged-2", "3"]


def test_what_people_put_beside_checkpoints_is_no_checkpoint(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for name in ("002", "1.old", "٣"):
        shutil.copytree(tmp_path / "1", tmp_path / name)
    (tmp_path / "4").touch()
    save_steps(tmp_path, 2)
    assert steps_in(tmp_path) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["002", "1", "1.old", "2", "4", "٣"]


def test_a_checkpoint_damaged_after_opening_is_not_restored(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9))
    flip_a_bit(tmp_path / "1")
    with pytest.raises(CheckpointError, match="has changed"):
        checkpoints.restore(fresh_state())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoints.restore(fresh_state(), step=5)
    checkpoints.close()


def test_orbax_own_metadata_is_not_needed(tmp_path: Path) -> None:
    """It is the one file that the list leaves out."""
    save_steps(tmp_path, 1)
    os.truncate(tmp_path / "1" / "_CHECKPOINT_METADATA", 5)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9))
    restored, data, meta = checkpoints.restore(fresh_state())
    checkpoints.close()
    assert_bit_equal(restored, fresh_state(1))
    assert (data, meta) == ({"step": 1}, {"note": "step 1"})


def test_no_whole_checkpoint_is_an_error_that_lists_them(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for step in ("1", "2"):
        truncate(tmp_path / step)
    for _ in range(2):  # not a new start the second time either
        with pytest.raises(CheckpointError, match=r"every checkpoint is damaged \(step 2: .*; step 1: .*\)"):
            Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9))
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        load_params(tmp_path, fresh_state()["params"])


def test_what_a_kill_left_half_written_is_cleared(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for step in (2, 3):
        (tmp_path / f"{step}.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9))
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, fresh_state(2), {}, {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB: writes fail as on a full disk, in whichever thread. Compiled programs fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing_save(folder: Path) -> Checkpointer:
    checkpoints = Checkpointer(folder, CheckpointConfig(every=10, keep=9))
    checkpoints.save(2, fresh_state(2, width=1024), {}, {})
    return checkpoints


def test_a_failed_save_is_raised_after_a_later_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_steps(tmp_path, 1)
    request.getfixturevalue("full_disk")
    checkpoints = failing_save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: the checkpoint of step 2 .* it continues from step 1"):
        wait_until(checkpoints.settle)
    checkpoints.close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(1)["params"])


def test_a_failed_save_is_raised_at_close(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_steps(tmp_path, 1)
    request.getfixturevalue("full_disk")
    with pytest.raises(CheckpointError, match="File too large"):
        failing_save(tmp_path).close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(1)["params"])


def test_a_failed_write_that_nobody_waited_for_is_not_logged_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    """Orbax writes many arrays at once; when the first fails, asyncio logs the others as they are collected."""
    code = compile(
        "def write():\n    raise ValueError('No space left on device')", "/x/orbax/checkpoint/save.py", "exec"
    )
    scope: dict[str, Any] = {}
    exec(code, scope)

    async def abandon(write: Callable[[], None]) -> None:
        async def task() -> None:
            write()

        running = asyncio.ensure_future(task())
        await asyncio.sleep(0)
        del running
        gc.collect()

    def own() -> None:
        raise ValueError("another part's failure")

    asyncio.run(abandon(scope["write"]))
    assert not caplog.records
    asyncio.run(abandon(own))
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_damaged_checkpoint_or_one_of_another_model_is_not_read(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    params = fresh_state()["params"]
    with pytest.raises(CheckpointError, match=r"params blocks\.0\.attention\.q is \(8, 8\).*in this run \(16, 16\)"):
        read_params(tmp_path, fresh_state(width=16)["params"])
    flip_a_bit(tmp_path / "2")
    with pytest.raises(CheckpointError, match="has changed"):
        read_params(tmp_path, params, step=2)
    assert_bit_equal(read_params(tmp_path, params)("embed", None), fresh_state(1)["params"]["embed"])
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        read_params(tmp_path / "1" / "not there", params)


def test_damage_that_another_process_sees_is_an_error_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is collective: who went on alone would wait for ever."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_text("intact here")
    write_files(tmp_path / "1")
    monkeypatch.setattr("lifecycle.training.checkpoints.integrity.from_first", lambda own: own or "changed elsewhere")
    for load in (
        lambda: load_params(tmp_path, {}, 1, shardings={}),
        lambda: load_params(tmp_path, {}, shardings={}),
        lambda: load_opt_state(tmp_path, 1, {}),
        lambda: load_data_state(tmp_path, 1),
    ):
        with pytest.raises(CheckpointError, match="changed elsewhere"):
            load()
