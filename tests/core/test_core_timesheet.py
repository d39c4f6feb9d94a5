"""The time sheet: whatever is killed when, the causes add up to the wall time, and no second is in two of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.timesheet import LOST, STEPS, Timesheet, account, read_sessions


def write(path: Path, began: float, step: int, records: list[tuple[int, float]], ended: str | None = None) -> None:
    """A session that starts for 5 seconds and then has these (finished steps, seconds in steps)."""
    sheet = Timesheet(path, began, step, {"start": 5.0}, steps=100)
    sheet.write(step, {"start": 5.0})
    for finished, seconds in records:
        sheet.write(finished, {"start": 5.0, STEPS: seconds})
    if ended is not None:
        sheet.write(records[-1][0] if records else step, {"start": 5.0, STEPS: records[-1][1] if records else 0.0},
                    ended=ended)  # fmt: skip
    sheet.close()


def test_lost_steps_are_those_after_the_step_that_a_later_session_began_with(tmp_path: Path) -> None:
    path = tmp_path / "times.jsonl"
    write(path, 1000.0, 0, [(4, 40.0), (8, 80.0)])
    write(path, 1100.0, 4, [(6, 20.0)], ended="FloatingPointError")
    write(path, 1200.0, 2, [], ended="stopped")  # the checkpoint of step 4 was damaged: older steps are lost too
    write(path, 1300.0, 2, [(10, 80.0)], ended="finished")
    sheet = account(read_sessions(path))
    assert sheet.seconds == {"start": 20.0, STEPS: 20.0 + 0.0 + 80.0, LOST: 60.0 + 20.0, "down": 15.0 + 75.0 + 95.0}
    assert sheet.wall_s == pytest.approx(1385.0 - 1000.0)
    assert sheet.lost_steps == 6 + 2
    assert sheet.failures == ("killed after step 8", "FloatingPointError after step 6")
    assert sheet.goodput == pytest.approx(100 / 385)


def test_a_session_killed_while_it_restores_is_a_failure_without_lost_steps(tmp_path: Path) -> None:
    path = tmp_path / "times.jsonl"
    write(path, 1000.0, 0, [(4, 40.0)], ended="stopped")
    Timesheet(path, 1100.0, 4, {"start": 3.0}).close()
    with path.open("a") as file:
        file.write('{"session": 1100.0, "st')  # killed in the middle of a line
    assert [session.last.step for session in read_sessions(path)] == [4, 4]
    write(path, 1200.0, 4, [(5, 10.0)], ended="finished")
    sheet = account(read_sessions(path))
    assert sheet.failures == ("killed after step 4",) and sheet.lost_steps == 0
    assert sheet.wall_s == pytest.approx(215.0)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_session_killed_while_it_compiles_does_not_say_which_checkpoint_counts(tmp_path: Path) -> None:
    """The hosts' own checkpoint, of step 350, is newer than the durable one, of step 200."""
    path = tmp_path / "times.jsonl"
    write(path, 1000.0, 0, [(390, 390.0)])
    for began, end in ((1400.0, {}), (1450.0, {"ended": "XlaRuntimeError"})):
        compiling = Timesheet(path, began, 200, {"start": 5.0})
        if end:
            compiling.write(200, {"start": 5.0}, **end)
        compiling.close()
    assert account(read_sessions(path)).lost_steps == 190  # as far as is known
    sheet = Timesheet(path, 1500.0, 200, {"start": 5.0})
    sheet.write(350, {"start": 5.0})
    sheet.close()
    known = account(read_sessions(path))
    assert known.lost_steps == 40 and known.seconds[LOST] == pytest.approx(40.0)


SESSION = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 50), max_size=6), st.integers(0, 100))


@given(st.lists(SESSION, min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_the_causes_add_up(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, list[int], int]]) -> None:
    path = tmp_path_factory.mktemp("sheet") / "times.jsonl"
    now = end = 1000.0
    for from_step, seconds, down in runs:
        records = [(from_step + i + 1, float(sum(seconds[: i + 1]))) for i in range(len(seconds))]
        write(path, now, from_step, records)
        end = now + 5.0 + sum(seconds)
        now = end + down
    sheet = account(read_sessions(path))
    assert sheet.wall_s == pytest.approx(end - 1000.0) and all(s >= 0 for s in sheet.seconds.values())
