"""The logged rate is of the steps alone, whatever runs between them: with a clock that only moves when work is done."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import RunLog, read_log
from lifecycle.core.stopping import Stopped
from lifecycle.core.timesheet import account, read_sessions
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.training import loop
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.faults import GoBack
from lifecycle.training.hooks.log import Log
from lifecycle.training.hooks.save import Save
from lifecycle.training.hooks.times import RecordTimes
from lifecycle.training.run import Clock, TrainingRun
from lifecycle.training.state import TrainState
from lifecycle.training.step_times import StepTimes
from lifecycle.training.watchdog import Watchdog

STEP_S, EPOCH = 2.0, 1e9
POSITIONS = 16 * 32  # of a step of the tiny run


class Device:
    """A device that computes steps while Python goes on; its seconds pass when somebody waits for the result."""

    def __init__(self) -> None:
        self.now, self._running = 0.0, 0

    def step(self, state: TrainState, _: Any) -> tuple[TrainState, dict[str, Any]]:
        """Starts a step."""
        self._running += 1
        return state, {"loss": self, "num_tokens": np.int32(POSITIONS)}

    def block_until_ready(self) -> "Device":
        """Waits for the steps that run."""
        self.now, self._running = self.now + STEP_S * self._running, 0
        return self

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """A step's metric, fetched."""
        self.block_until_ready()
        return np.ones(())

    def busy(self, seconds: float, result: Any = None) -> Callable[..., Any]:
        """Other work, which waits for the steps that it depends on."""

        def work(*_: Any) -> Any:
            self.block_until_ready()
            self.now += seconds
            return result

        return work


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    monkeypatch.setattr("lifecycle.training.run.time", SimpleNamespace(perf_counter=lambda: device.now))
    monkeypatch.setattr("lifecycle.training.run.cpu_seconds", lambda: device.now)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: device.now))
    monkeypatch.setattr(loop, "next_batch", lambda *_: {})
    monkeypatch.setattr(loop, "compiled_step", lambda *_: device.step)
    monkeypatch.setattr("lifecycle.training.hooks.times.time", SimpleNamespace(time=lambda: EPOCH + device.now))
    yield device


class Ends:
    """In place of `StepTimes`, whose thread would race with the test: steps that end when they are asked for."""

    def __init__(self, loader_s: float = 0.0) -> None:
        self.loader_s, self.steps = loader_s, 0

    def dispatched(self, at: float, output: Any) -> None:
        self.steps += 1

    def fetched(self, began: float, ended: float, spent: Mapping[str, float]) -> None:
        pass

    def take(self) -> tuple[list[float], dict[str, float]]:
        steps, self.steps = self.steps, 0
        return [STEP_S] * steps, {"loader": self.loader_s}


def follow(
    device: Device, out: Path, steps: range, log_every: int, eval_every: int, save_every: int, loader_s: float = 0.0
) -> None:
    """A run whose evaluations, checkpoints and learning rate take much longer than its steps."""
    job = tiny_job(out, TinyRun(steps=steps.stop))
    job = replace(job, train=job.train.model_copy(update={"log_every": log_every}))
    state: Any = TrainState({"w": device}, {}, {}, 0)
    checkpoints: Any = SimpleNamespace(
        settings=CheckpointConfig(every=save_every), prepare=lambda _: None, save=device.busy(300.0),
        settle=lambda **_: True, wait=lambda: None,
    )  # fmt: skip
    clock = Clock({"start": 5.0, "imports": 3.0})
    with RunLog(out / "metrics.jsonl") as log, RecordTimes(job, clock, steps.start).session() as sheet:
        times: Any = Ends(loader_s)
        run = TrainingRun(job, Silent(), log, state, steps.start, clock=clock, times=times)
        measure = Evaluate(eval_every, device.busy(70.0, {"heldout_loss": 1.0}))
        hooks = (Log(log_every, device.busy(11.0, 0.5)), measure, Save(checkpoints), sheet)
        loop.train_steps(run, None, state, Watchdog(clock, out, 600.0), hooks)  # pyrefly: ignore[bad-argument-type] - a step that needs none


def records(device: Device, out: Path, log_every: int, eval_every: int, save_every: int) -> list[Any]:
    """The log of such a run."""
    follow(device, out, range(12), log_every, eval_every, save_every)
    return [record for record in read_log(out / "metrics.jsonl") if "loss" in record]


@pytest.mark.parametrize(("log_every", "eval_every", "save_every"), [(1, 3, 2), (4, 3, 100), (2, 3, 5), (4, 3, 6)])
def test_the_rate_is_of_the_steps_alone(
    device: Device, tmp_path: Path, log_every: int, eval_every: int, save_every: int
) -> None:
    logged = records(device, tmp_path, log_every, eval_every, save_every)
    assert [record["tokens_per_s"] for record in logged] == [POSITIONS / STEP_S] * len(logged)
    assert sum(record["cpu_s"] for record in logged) == 12 * STEP_S


def test_the_causes_add_up_to_the_wall_time(device: Device, tmp_path: Path) -> None:
    follow(device, tmp_path, range(12), 4, 3, 6, loader_s=0.5)
    sheet = account(read_sessions(tmp_path / "times.jsonl"))
    # steps 4, 8 and 12 are logged, and 6, which is saved; the loader was late before each
    assert sheet.seconds == {
        "start": 5.0, "imports": 3.0, "data": 0.0, "compile": 0.0, "steps": 12 * STEP_S - 2.0, "loader": 2.0,
        "log": 4 * 11.0, "evaluation": 5 * 70.0, "checkpoint": 2 * 300.0,
    }  # fmt: skip
    assert sheet.wall_s == 8.0 + device.now and sheet.lost_steps == 0


def test_steps_that_run_again_are_lost_and_time_between_sessions_is_down(device: Device, tmp_path: Path) -> None:
    """The second session goes on from step 8; of the first one's 12 steps, the time of 4 is lost."""
    follow(device, tmp_path, range(12), 2, 100, 100)
    device.now += 1000.0
    follow(device, tmp_path, range(8, 16), 2, 100, 100)
    sheet = account(read_sessions(tmp_path / "times.jsonl"))
    assert sheet.lost_steps == 4
    assert sheet.seconds["lost steps"] == 4 * STEP_S and sheet.seconds["steps"] == 16 * STEP_S
    assert sheet.seconds["down"] == 1000.0 - 8.0  # the second one's process had started by then
    assert sheet.wall_s == 8.0 + device.now


def test_a_run_that_goes_back_from_a_faulty_step_has_not_failed(device: Device, tmp_path: Path) -> None:
    job = tiny_job(tmp_path, TinyRun(steps=8))
    for fault in (GoBack(3, "loss nan"), Stopped(), FloatingPointError()):
        with pytest.raises(type(fault)), RecordTimes(job, Clock(), 2).session():
            device.now += 1.0
            raise fault
    sessions = read_sessions(tmp_path / "times.jsonl")
    assert [session.ended for session in sessions] == ["went back", "stopped", "FloatingPointError"]
    assert account(sessions).failures == ("FloatingPointError after step 2",)


@pytest.mark.parametrize(
    ("spent", "late"),
    [
        ({}, {"loader": 10.0}),
        ({"generation": 3.0, "reward": 5.0}, {"generation": 3.0, "reward": 5.0, "loader": 2.0}),
        ({"generation": 30.0, "reward": 10.0}, {"generation": 7.5, "reward": 2.5, "loader": 0.0}),
    ],
    ids=["rows", "all late", "most beside the step"],
)
def test_a_late_batch_is_charged_to_what_made_it(spent: dict[str, float], late: dict[str, float]) -> None:
    """A batch that came 10 seconds after its step's end; what took longer than that went on beside the step."""
    times = StepTimes(lambda _: None)
    times.dispatched(perf_counter(), "a loss")
    at = perf_counter() + 1000
    times.fetched(at, at + 10, spent)
    steps, found = times.take()
    assert len(steps) == 1 and found == pytest.approx(late)
    times.close()
