"""The logged rate is of the steps alone, whatever runs between them: with a clock that only moves when work is done."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import RunLog, read_log
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.training import loop
from lifecycle.training.config import CheckpointConfig
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.log import Log
from lifecycle.training.hooks.save import Save
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState

STEP_S = 2.0
POSITIONS = 16 * 32  # of a step of the tiny run


class Device:
    """A device that computes steps while Python goes on; its seconds pass when somebody waits for the result."""

    def __init__(self) -> None:
        self.now, self._running = 0.0, 0

    def step(self, state: TrainState, _: Any) -> tuple[TrainState, dict[str, Any]]:
        """Starts a step."""
        self._running += 1
        return state, {"loss": self}

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
    monkeypatch.setattr(loop, "next_batch", lambda *_: {})
    monkeypatch.setattr(loop, "compiled_step", lambda *_: device.step)
    yield device


def records(device: Device, out: Path, steps: int, log_every: int, eval_every: int, save_every: int) -> list[Any]:
    """The log of a run whose evaluations, checkpoints and learning rate take much longer than its steps."""
    job = tiny_job(out, TinyRun(steps=steps))
    job = replace(job, train=job.train.model_copy(update={"log_every": log_every}))
    state: Any = TrainState({"w": device}, {}, {}, 0)
    checkpoints: Any = SimpleNamespace(
        settings=CheckpointConfig(every=save_every), save=device.busy(300.0), settle=lambda **_: True, wait=lambda: None
    )
    with RunLog(out / "metrics.jsonl") as log:
        run = TrainingRun(job, Silent(), log, state, 0)
        measure = Evaluate(eval_every, device.busy(70.0, {"heldout_loss": 1.0}))
        hooks = (Log(log_every, device.busy(11.0, 0.5)), measure, Save(checkpoints))
        loop.train_steps(run, None, state, hooks)  # pyright: ignore[reportArgumentType]
    return [record for record in read_log(out / "metrics.jsonl") if "loss" in record]


@pytest.mark.parametrize(("log_every", "eval_every", "save_every"), [(1, 3, 2), (4, 3, 100), (2, 3, 5), (4, 3, 6)])
def test_the_rate_is_of_the_steps_alone(
    device: Device, tmp_path: Path, log_every: int, eval_every: int, save_every: int
) -> None:
    logged = records(device, tmp_path, 12, log_every, eval_every, save_every)
    assert [record["tokens_per_s"] for record in logged] == [POSITIONS / STEP_S] * len(logged)
    assert sum(record["cpu_s"] for record in logged) == 12 * STEP_S
