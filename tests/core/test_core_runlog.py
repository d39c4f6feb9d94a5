"""The run log: a line cut by a kill is left out, and no step is in it twice after a rewind."""

from pathlib import Path

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
