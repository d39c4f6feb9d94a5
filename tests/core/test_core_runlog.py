"""The run log: a line cut by a kill is left out, and no step is in it twice after a rewind."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.runlog import RunLog, RunLogError, read_log, rewind


def test_records_come_back_in_order_and_a_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_log(path)) == []
    with RunLog(path) as log:
        log.write(step=1, loss=2.5)
    with RunLog(path) as log:
        log.write(step=2, loss=2.25, note="ü")
    assert list(read_log(path)) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25, "note": "ü"}]


def test_a_record_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.write(step=1)
    assert list(read_log(log.path)) == [{"step": 1}]
    log.close()


class Disk:
    """A file on a disk with room for so many bytes more."""

    def __init__(self, file: io.FileIO, room: int, refusal: int) -> None:
        self._file, self.room, self._refusal = file, room, refusal

    def write(self, content: bytes) -> int:
        """Writes what there is room for, like write(2)."""
        if not self.room:
            raise OSError(self._refusal, os.strerror(self._refusal))
        written = self._file.write(content[: self.room])
        self.room -= written
        return written

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._file.close()


def log_on(disk: list[Disk], path: Path, room: int, refusal: int, monkeypatch: pytest.MonkeyPatch) -> RunLog:
    """A log on such a disk, which is added to `disk`."""

    def opened(path: Path, mode: str, **how: Any) -> Any:
        file: Any = open(path, mode, **how)  # noqa: SIM115 - closed by who opens it
        if mode == "ab":
            disk.append(Disk(file, room, refusal))
        return disk[-1] if mode == "ab" else file

    monkeypatch.setattr("lifecycle.core.runlog.open", opened, raising=False)
    return RunLog(path)


@pytest.mark.parametrize("room", [0, 1, 13, 14, 20])
def test_records_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    disk: list[Disk] = []
    log = log_on(disk, tmp_path / "metrics.jsonl", room, errno.ENOSPC, monkeypatch)
    for step in (1, 2, 3):
        log.write(step=step)
        assert list(read_log(log.path)) == [{"step": 1}][: room // len('{"step": 1}\n')]
    disk[0].room = 30
    log.write(step=4)
    disk[0].room = 1000
    log.close()
    assert [record["step"] for record in read_log(log.path)] == [1, 2, 3, 4]


def test_records_that_a_full_disk_never_took_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_on([], tmp_path / "metrics.jsonl", 15, errno.EDQUOT, monkeypatch)
    for step in (1, 2, 3):
        log.write(step=step)
    with pytest.raises(OSError, match=r"so the last 2 records are lost: '.*metrics\.jsonl'") as raised:
        log.close()
    assert raised.value.errno == errno.EDQUOT and [record["step"] for record in read_log(log.path)] == [1]


def test_another_failure_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_on([], tmp_path / "metrics.jsonl", 0, errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output"):
        log.write(step=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_the_kernels_full_device_is_a_full_disk() -> None:
    log = RunLog(Path("/dev/full"))
    log.write(step=1)
    with pytest.raises(OSError, match="No space left on device, so the last 1 records"):
        log.close()


def test_a_last_line_cut_by_a_kill_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert list(read_log(path)) == [{"step": 1}, {"step": 2}]
    rewind(path, 5)
    with RunLog(path) as log:
        log.write(step=3)
    assert [record["step"] for record in read_log(path)] == [1, 2, 3]


def test_rewind_drops_later_steps_and_keeps_what_has_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path) as log:
        log.write(note="begin")
        for step in (1, 2, 2, 3):
            log.write(step=step)
    rewind(path, 2)
    assert list(read_log(path)) == [{"note": "begin"}, {"step": 1}, {"step": 2}, {"step": 2}]
    rewind(tmp_path / "new.jsonl", 0)
    assert list(read_log(tmp_path / "new.jsonl")) == []


@pytest.mark.parametrize("damage", [b"{\n", b"[1]\n", b"\xff\n", b"\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    with pytest.raises(RunLogError, match=r"metrics\.jsonl:2: damaged .*delete this line"):
        list(read_log(path))
