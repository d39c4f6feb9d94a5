"""The watchdog: what it takes for a hang, and that a job with one goes on to its end."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.stopping import LOST_STATUS
from lifecycle.testing.jobs import TinyRun, command, tiny_job
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.training.loop import run_job
from lifecycle.training.run import Clock
from lifecycle.training.watchdog import FACTOR, OFF_CLOCK, Watchdog

LAUNCH = str(Path(__file__).parents[2] / "launch" / "local.sh")


@pytest.fixture
def clock() -> Any:
    """A clock that stands at 0."""
    return SimpleNamespace(is_paused=False, read=lambda: (0.0, 0.0))


def hung_after(
    watchdog: Watchdog, script: Sequence[Callable[[], Any] | None], monkeypatch: pytest.MonkeyPatch
) -> float | None:
    """The silence after which it gives up, if the script's actions come between its polls; None if it does not."""
    given_up: list[float] = []
    monkeypatch.setattr(watchdog, "_give_up", given_up.append)
    watchdog._silent_s, watchdog._seen = 0.0, (watchdog._done, watchdog._clock.is_paused)
    for action in script:
        if action is not None:
            action()
        watchdog._look()
    return given_up[0] if given_up else None


def test_a_process_hangs_if_no_step_is_launched_for_the_limit(
    clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched() -> None:
        watchdog.launched({})

    def paused() -> None:
        clock.is_paused = True

    def goes_on() -> None:
        clock.is_paused = False

    watchdog = Watchdog(clock, tmp_path, hang_s=10.0)  # a poll each second
    assert hung_after(watchdog, [None] * 10 * OFF_CLOCK, monkeypatch) is None  # others may still compile
    launched()
    assert hung_after(watchdog, [None] * 10, monkeypatch) is None
    assert hung_after(watchdog, [None] * 11, monkeypatch) == 11
    assert hung_after(watchdog, [*[None] * 9, launched] * 3, monkeypatch) is None
    patience = 10 * OFF_CLOCK
    script = [*[None] * 9, paused, *[None] * patience, goes_on, *[None] * 9]
    assert hung_after(watchdog, script, monkeypatch) is None
    assert hung_after(watchdog, [paused, *[None] * (patience + 1)], monkeypatch) == patience + 1


def test_slow_steps_have_more_time_and_all_that_the_device_has_still_to_do(tmp_path: Path) -> None:
    now = iter([0.0, 30.0, 34.0, 46.0])
    clock: Any = SimpleNamespace(is_paused=False, read=lambda: (next(now), 0.0))
    watchdog = Watchdog(clock, tmp_path, hang_s=10.0)
    watchdog.launched({})  # the first takes 30 s, with all that comes before it
    assert watchdog.limit_s == FACTOR * 30
    watchdog.launched({})
    watchdog.measured()  # 4 s
    for _ in range(3):
        watchdog.launched({})
    watchdog.measured()  # 12 s for three
    assert watchdog.limit_s == FACTOR * 4
    watchdog.launched({})
    watchdog.launched({})
    assert watchdog.limit_s == FACTOR * 4 * 3


def test_a_hung_process_writes_all_stacks_and_ends_as_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()
        threading.current_thread().join()  # a thread that joins itself ends with an error, as this one has to

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Watchdog(Clock(), tmp_path, hang_s=0.2).watching():
        assert ended.wait(LIMIT_S)
    text = (tmp_path / "stacks-0.txt").read_text()
    assert statuses == [LOST_STATUS]
    assert "no step for" in text and "test_a_hung_process" in text and "most recent call first" in text
    assert text in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("by", ["sleep", "SIGSTOP"])
def test_a_job_with_a_hanging_process_is_restarted_and_ends_with_the_same_bits(tmp_path: Path, by: str) -> None:
    """Process 0 of two sleeps in a hook, or is stopped; then process 1 hangs in the collective of step 8's save, where
    it has more patience: JAX's service ends it first, if process 0 sends no heartbeats."""
    settings = TinyRun(steps=12, checkpoint_every=4, mesh={"fsdp": 2}, hang_at=9, hang_by=by, hang_s=40)
    whole = run_job(tiny_job(tmp_path / "whole", TinyRun(steps=12, checkpoint_every=4, mesh={"fsdp": 2})), Silent())
    out = tmp_path / "hung"
    out.mkdir()
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    ended = subprocess.run(
        [LAUNCH, "--restarts", "1", "2", *command(out, settings)], env=environment, capture_output=True, text=True
    )
    print(ended.stdout, ended.stderr)
    status = LOST_STATUS if by == "sleep" else 128 + signal.SIGABRT
    assert ended.returncode == 0 and f"ended with status {status}; restart 1 of 1" in ended.stderr
    told = [json.loads(line[4:]) for line in ended.stdout.splitlines() if line.startswith("[0] {")]
    stacks = sorted(path.name for path in out.glob("stacks-*.txt"))
    assert stacks == (["stacks-0.txt", "stacks-1.txt"] if by == "sleep" else [])
    if by == "sleep":
        assert "jobs.py" in (out / "stacks-0.txt").read_text()
    else:
        assert re.search(r"^\[1\] .*most recent call first", ended.stdout, re.MULTILINE) and "in settle" in ended.stdout
    assert told[-1]["steps"] == 12 and told[-1]["params_hash"] == whole["params_hash"]
