"""When a run saves, which checkpoints stay, and how long it goes on while saves fail: by rules, without arrays."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.testing.jobs import TinyRun
from lifecycle.training.checkpoints.config import CheckpointConfig, LocalCheckpointConfig
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.retention import DELETED, delete_unwanted, kept_steps
from lifecycle.training.config import FaultsConfig
from lifecycle.training.hooks.save import RETRY_S, Save
from lifecycle.training.hooks.save_local import SaveLocal
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.run import TrainingRun
from tests.checkpoints import Notes

METRIC = "heldout_bits_per_byte"


@given(
    st.dictionaries(st.integers(1, 40), st.floats(0, 1) | st.sampled_from([None, math.nan, math.inf, -math.inf])),
    st.integers(1, 5),
    st.none() | st.integers(1, 4),
    st.sampled_from([None, "lowest", "highest"]),
)
def test_what_stays(values: dict[int, float | None], keep: int, periods: int | None, best: Any) -> None:
    """Each rule by itself, one step after the other as a run saves them: what one rule needs no other deletes."""
    settings = CheckpointConfig(every=2, keep=keep, keep_every=periods and 2 * periods, best=best and METRIC)
    settings = settings.model_copy(update={"best_is": best or "lowest"})
    saved: dict[int, Mapping[str, float]] = {}
    for step in sorted(values):
        value = values[step]
        saved[step] = {} if value is None else {METRIC: value}
        stay = kept_steps(saved, settings)
        saved = {step: measured for step, measured in saved.items() if step in stay}
    assert set(sorted(values)[-keep:]) <= saved.keys()
    wanted = set(sorted(values)[-keep:]) | {step for step in values if periods and step % (2 * periods) == 0}
    wanted |= {max(step for step in values if step % 2 == 0)} if any(step % 2 == 0 for step in values) else set()
    measured = [value for value in values.values() if value is not None and math.isfinite(value)]
    if best and measured:
        extreme = min(measured) if best == "lowest" else max(measured)
        wanted.add(max(step for step, value in values.items() if value == extreme))
    assert saved.keys() == wanted


def test_a_kill_while_files_are_deleted_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4, 6):
        (tmp_path / str(step) / "params").mkdir(parents=True)

    def killed(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patched:
        patched.setattr("lifecycle.training.checkpoints.retention.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt, match=f"2{DELETED}"):
            delete_unwanted(tmp_path, CheckpointConfig(keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"2{DELETED}", "4", "6"]
    delete_unwanted(tmp_path, CheckpointConfig(keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": {"every": 4, "keep_every": 6}}, r"checkpoint: keep_every=6 is not a multiple of every=4"),
        ({"checkpoint": {"every": 4, "best": METRIC}, "eval_every": 3}, r"every=4 is not a multiple of that"),
        ({"checkpoint": {"every_minutes": 0}}, r"checkpoint\.every_minutes"),
        ({"checkpoint_every": 4}, r"checkpoint_every"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(NextTokenConfig, TinyRun().train().plain() | settings)


class Disk:
    """Checkpoints on a disk that has no room before a step; a save ends when it is next asked for."""

    def __init__(self, full_until: int = 0, **settings: Any) -> None:
        self.settings: CheckpointConfig | LocalCheckpointConfig = CheckpointConfig(**settings)
        self._full_until = full_until
        self.saved: list[int] = []
        self.now = 0.0
        self._pending: int | None = None

    def prepare(self, state: Any) -> None:
        """Nothing is copied here."""

    def save(self, step: int, *_: Any) -> None:
        assert self._pending is None
        self._pending = step

    def settle(self, *, is_waiting: bool = False) -> bool:
        step, self._pending = self._pending, None
        if step is not None and step < self._full_until:
            raise CheckpointError(f"the checkpoint of step {step} could not be written (No space left on device)")
        self.saved += [step] if step is not None else []
        return True

    def wait(self) -> None:
        self.settle(is_waiting=True)


class LocalDisk(Disk):
    """A disk for local checkpoints."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = LocalCheckpointConfig(folder="/nowhere", **settings)

    def save(self, step: int, *_: Any) -> None:
        self.saved.append(step)


def steps(
    disk: Disk, last: int, *, first: int = 0, total: int = 1000, seconds: float = 6.0, log_every: int = 1,
    left_out: tuple[int, ...] = (), saving: type[Save | SaveLocal] = Save,
    before: Callable[[TrainingRun], None] = lambda run: None,
) -> Notes:  # fmt: skip
    """Takes the hook through steps of some seconds, of which every `log_every`th is logged if it is not left out."""
    checkpoints: Any = disk
    notes, hook = Notes(), saving(checkpoints, clock=lambda: disk.now)
    section: Any = SimpleNamespace(plain=dict, steps=total, faults=FaultsConfig())
    job: Any = SimpleNamespace(model=section, train=section, batches=SimpleNamespace(state=lambda step: {}))
    state: Any = SimpleNamespace(saved={})
    run = TrainingRun(job, notes, None, state, first)
    hook.start(run)
    while run.step < last:
        run.step, disk.now = run.step + 1, disk.now + seconds
        is_fetched = run.step % log_every == 0 or hook.needs_metrics(run)
        run.metrics = {"loss": 1.0} if is_fetched and run.step not in left_out else None
        before(run)
        hook.after_step(run)
    return notes


def test_a_checkpoint_is_due_by_steps_and_by_time() -> None:
    disk = Disk(every=100, every_minutes=1)
    steps(disk, 131, log_every=4)
    assert disk.saved == [12, 24, 36, 48, 60, 72, 84, 96, 100, 112, 124]  # ten steps a minute, at logged steps


def test_a_local_checkpoint_is_due_by_steps_and_by_time() -> None:
    disk = LocalDisk(every=100, every_minutes=1)
    steps(disk, 131, log_every=4, left_out=(48,), saving=SaveLocal)
    assert disk.saved == [12, 24, 36, 52, 64, 76, 88, 100, 112, 124]


def test_a_step_whose_update_was_left_out_is_saved_too() -> None:
    disk = Disk(every=10)
    steps(disk, 25, total=25, left_out=(10, 25))
    assert disk.saved == [10, 20, 25]


def test_a_run_that_keeps_the_best_goes_on_from_a_step_that_was_saved() -> None:
    disk = Disk(every=10, best=METRIC)
    steps(disk, 19, first=10)  # nothing is measured when it starts
    with pytest.raises(ValueError, match=f"checkpoint.best={METRIC} is not measured"):
        steps(disk, 20, first=10)


def test_what_is_measured_less_often_than_a_run_saves_by_time_stops_nothing() -> None:
    disk = Disk(every=100, every_minutes=1, best="arc/accuracy")

    def measured(run: TrainingRun) -> None:
        run.measured, run.measured_at = ({"heldout_loss": 1.0} if run.step % 100 else {"arc/accuracy": 0.5}), run.step

    steps(disk, 120, before=measured)
    assert disk.saved == [*range(10, 101, 10), 110]


def test_a_full_disk_is_told_tried_again_and_then_ends_the_run() -> None:
    disk = Disk(full_until=1000, every=10, max_unsaved_minutes=5)
    with pytest.raises(CheckpointError, match=r"step 61 could not be written \(No space left"):
        steps(disk, 1000)
    assert disk.now == 61 * 6.0 and disk.saved == []  # the first failure is seen after step 11, the last 300 s later


def test_a_disk_that_has_room_again_is_used_again() -> None:
    disk = Disk(full_until=20, every=10)
    first, last = steps(disk, 45).texts
    assert "step 11: training goes on unsaved, for at most 60 min: the checkpoint of step 10" in first
    assert last == "step 21: checkpoints can be written again" and disk.saved == [20, 30, 40]
    assert RETRY_S == 60.0  # ten of these steps


class SlowDisk(Disk):
    """A full disk whose writes, from a step on, take for ever to fail: a save ends only if it is waited for."""

    def __init__(self, slow_from: int, **settings: Any) -> None:
        super().__init__(full_until=1000, **settings)
        self._slow_from = slow_from

    def settle(self, *, is_waiting: bool = False) -> bool:
        is_slow = self._pending is not None and self._pending >= self._slow_from
        return super().settle(is_waiting=is_waiting) if is_waiting or not is_slow else False


def test_a_save_that_does_not_end_is_waited_for_when_the_others_have_failed_for_too_long() -> None:
    disk = SlowDisk(slow_from=20, every=10, max_unsaved_minutes=5)
    with pytest.raises(CheckpointError, match="step 61 could not be written"):
        steps(disk, 1000)
    assert disk.now == 61 * 6.0  # 300 s after the first failure was seen, with no new save in between


def test_a_run_whose_time_is_over_stands_still_for_a_last_save() -> None:
    """Steps of 50 s: the failure is seen after step 11, and half a minute is over at step 12."""
    notes = steps(disk := Disk(full_until=12, every=10, max_unsaved_minutes=0.5), 15, seconds=50.0)
    assert disk.saved == [12] and notes.texts[1:] == ["step 12: checkpoints can be written again"]
    with pytest.raises(CheckpointError, match="step 12"):
        steps(disk := Disk(full_until=1000, every=10, max_unsaved_minutes=0.5), 15, seconds=50.0)
    assert disk.now == 12 * 50.0


def test_a_failure_that_is_seen_when_the_time_is_over_has_a_last_save_too() -> None:
    """Steps of 50 s, saved again each minute: the failure of step 12 is seen after step 13, when a minute is over."""
    notes = steps(disk := Disk(full_until=13, every=10, max_unsaved_minutes=1), 30, seconds=50.0)
    assert disk.saved == [13, 20] and notes.texts[-1] == "step 13: checkpoints can be written again"
    steps(disk := Disk(full_until=11, every=10, max_unsaved_minutes=0), 15)
    assert disk.saved == [11]


class SaveOfRollback(Save):
    """Goes back at step 21 as the loop does."""

    def after_step(self, run: TrainingRun) -> None:
        if run.step == 21:
            self.settle(run.step, run.progress, is_waiting=True)
            self.start(run)
        super().after_step(run)


def test_a_save_whose_end_is_seen_as_the_run_goes_back_counts() -> None:
    notes = steps(disk := Disk(full_until=20, every=10), 45, saving=SaveOfRollback)
    assert notes.texts[1:] == ["step 21: checkpoints can be written again"] and disk.saved == [20, 30, 40]


def test_a_last_save_that_fails_ends_the_run() -> None:
    for total, last in ((15, 15), (10, 10)):
        with pytest.raises(CheckpointError, match=f"step {last}"):
            steps(Disk(full_until=1000, every=10), last, total=total)
