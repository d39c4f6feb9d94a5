"""The loop: kills leave no trace, divergence and changed data are refused, log and checkpoints tell what was."""

import math
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.core.stopping import RESTART_STATUS, Stopped
from lifecycle.core.timesheet import TIMES, account, read_sessions
from lifecycle.model.params import Params, abstract_params
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import KillAt, StopAt, TinyRun, command, objective_of, rows_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import DataStateError, HostBatch, RowBatches
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import CheckpointError, steps_in
from lifecycle.training.checkpoints.items import PARAMS
from lifecycle.training.checkpoints.weights import hash_params, load_params
from lifecycle.training.config import FaultsConfig
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.faults import DivergedError
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import CHECKPOINTS, Continued
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.run import Clock, TrainingRun
from tests.training.drawn_batches import DrawnBatches, drawn_job

RUN = TinyRun(steps=12, checkpoint_every=4, average_decay=0.5)
SHORT = replace(RUN, steps=4, checkpoint_every=1000)  # the same program


class Told(Silent):
    def __init__(self) -> None:
        self.updates: list[tuple[int, int | None, dict[str, Any]]] = []

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        self.updates.append((done, total, metrics))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Told]:
    out, told = tmp_path_factory.mktemp("undisturbed"), Told()
    return out, run_job(tiny_job(out, RUN), told), told


def trained(out: Path) -> list[dict[str, Any]]:
    """The log's records of training steps, without those of compilations and measurements."""
    return [record for record in read_log(out / METRICS) if "loss" in record]


def steps_of(out: Path) -> list[int]:
    return [record["step"] for record in trained(out)]


def checkpoints(out: Path) -> list[int]:
    return steps_in(out / CHECKPOINTS)


def test_a_run_logs_every_step_and_keeps_its_last_checkpoints(undisturbed: tuple[Path, dict[str, Any], Told]) -> None:
    out, stats, told = undisturbed
    records = trained(out)
    assert steps_of(out) == list(range(1, 13))
    assert checkpoints(out) == [8, 12]
    expected = {"step", "loss", "count", "num_tokens", "grad_norm", "update_norm", "learning_rate"}
    assert all(record.keys() == expected | {"tokens_per_s", "step_time", "cpu_s"} for record in records)
    assert all(record["tokens_per_s"] * record["step_time"] == pytest.approx(16 * 32) for record in records)
    each = [int((rows_of(RUN).row(number)["segment_ids"] > 0).sum()) for number in range(12 * 16)]
    assert [record["num_tokens"] for record in records] == np.cumsum(each)[15::16].tolist()
    stalls = [record for record in read_log(out / METRICS) if "save_stall_s" in record]
    assert [record["step"] for record in stalls] == [4, 8, 12] and all(r["save_stall_s"] > 0 for r in stalls)
    assert [(done, total) for done, total, _ in told.updates] == [(step, 12) for step in range(1, 13)]
    assert told.updates[-1][2]["loss"] == records[-1]["loss"] == stats["loss"] < records[0]["loss"] - 0.5
    assert stats["steps"] == 12 and stats["tokens"] == 12 * 16 * 32
    assert stats["params_hash"] == hash_params(load_params(out / CHECKPOINTS, abstract_params(MODEL)))
    last = load_params(out / CHECKPOINTS, abstract_params(MODEL), item=PARAMS)
    assert stats["params_hash"] != hash_params(last), "the run is for the average of the weights"


def require_times(out: Path, began: float, kills: list[int]) -> None:
    """The time sheet tells of the kills, and its causes are the time from the first process's start until now."""
    sessions = read_sessions(out / TIMES)
    sheet = account(sessions)
    assert [session.ended for session in sessions] == [None, None, "finished"]
    # a process is killed while its step is reported, before that step's record
    assert [session.last.step for session in sessions] == [kills[0] - 1, kills[1] - 1, 12]
    resumed = [session.from_step for session in sessions]
    assert sheet.lost_steps == sum(max(0, kill - 1 - step) for kill, step in zip(kills, resumed[1:], strict=True))
    assert sheet.wall_s == pytest.approx(sessions[-1].last.at - sessions[0].began, abs=0.01)
    assert began <= sessions[0].began + 0.1 and sessions[-1].last.at <= time.time() + 0.1
    assert {"restore", "compile", "checkpoint", "loader", "steps", "lost steps", "down"} <= sheet.seconds.keys()
    assert all(seconds >= 0 for seconds in sheet.seconds.values()) and len(sheet.failures) == 2


def test_a_run_killed_twice_ends_with_the_same_bits(
    undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path
) -> None:
    """SIGKILL at two random steps: one about the first checkpoint, one later; then to the end."""
    kills, began = [random.randint(1, 6), random.randint(7, 11)], time.time()
    for kill_at, kill_after in zip(kills, (None, 4), strict=True):
        settings = replace(RUN, kill_at=kill_at, kill_after=kill_after)
        ended = subprocess.run(command(tmp_path, settings), capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert steps_of(tmp_path)[-1] == kill_at
    stats = run_job(tiny_job(tmp_path, RUN), Silent())
    starts = [record["step"] for record in read_log(tmp_path / METRICS) if "compile_s" in record]
    assert starts[-1] >= 4, "the last run went on from a checkpoint"
    out, expected, _ = undisturbed
    assert stats["params_hash"] == expected["params_hash"], f"killed at steps {kills}"
    assert steps_of(tmp_path) == list(range(1, 13)), f"killed at steps {kills}"
    logged = [[(r["loss"], r["num_tokens"]) for r in trained(folder)] for folder in (tmp_path, out)]
    assert logged[0] == logged[1], f"killed at steps {kills}"
    require_times(tmp_path, began, kills)


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_run_goes_on_with_the_same_bits(
    undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path
) -> None:
    """The signal comes while step 5 is reported, so the step that is saved is the next one; no checkpoint was due."""
    settings = replace(RUN, kill_at=5, kill_by="SIGTERM")
    ended = subprocess.run(command(tmp_path, settings), capture_output=True, text=True)
    assert ended.returncode == RESTART_STATUS, ended.stderr
    assert "stopped after step 6 of 12, which is saved" in ended.stdout and checkpoints(tmp_path)[-1] == 6
    assert run_job(tiny_job(tmp_path, RUN), Silent())["params_hash"] == undisturbed[1]["params_hash"]
    assert steps_of(tmp_path) == list(range(1, 13))


@pytest.mark.slow
def test_sigterm_after_the_last_step_stops_the_run_too(
    undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path
) -> None:
    """It would train the next stage, until it is killed."""
    with pytest.raises(Stopped, match="stopped after step 12 of 12, which is saved"):
        run_job(tiny_job(tmp_path, RUN), KillAt(12, None, signal.SIGTERM))
    assert run_job(tiny_job(tmp_path, RUN), Silent())["params_hash"] == undisturbed[1]["params_hash"]
    assert steps_of(tmp_path) == list(range(1, 13))


def test_a_run_continued_from_anothers_checkpoint_ends_with_that_ones_bits(
    undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path
) -> None:
    """From step 8 of 12; in between it is stopped, and goes on from a checkpoint of its own."""
    folder, expected, _ = undisturbed
    job = replace(tiny_job(tmp_path, RUN), start=Continued(folder / CHECKPOINTS, 8))
    job = replace(job, train=job.train.model_copy(update={"checkpoint": CheckpointConfig(every=10)}))
    with pytest.raises(KeyboardInterrupt):
        run_job(job, StopAt(11))
    assert checkpoints(tmp_path) == [10] and checkpoints(folder) == [8, 12]
    stats = run_job(replace(job, batches=tiny_job(tmp_path, RUN).batches), Silent())
    assert stats["params_hash"] == expected["params_hash"] and stats["tokens"] == 4 * 16 * 32
    assert steps_of(tmp_path) == [9, 10, 11, 12]
    assert trained(tmp_path)[-1]["num_tokens"] == trained(folder)[-1]["num_tokens"]
    gone = replace(tiny_job(tmp_path / "other", RUN), start=Continued(folder / CHECKPOINTS, 4))
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; there are 8, 12"):
        run_job(gone, Silent())


def test_a_copy_of_a_checkpoint_under_another_name_is_refused(
    undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path
) -> None:
    """A run that took it up would train its step again, and find the step's checkpoint there already."""
    folder = undisturbed[0] / CHECKPOINTS
    shutil.copytree(folder / "8", tmp_path / CHECKPOINTS / "12")
    with pytest.raises(CheckpointError, match=r"step 12 is a copy of that of step 8, .*; delete the folder 12"):
        run_job(tiny_job(tmp_path, RUN), Silent())
    branch = replace(tiny_job(tmp_path / "branch", replace(RUN, steps=14)), start=Continued(tmp_path / CHECKPOINTS, 12))
    with pytest.raises(CheckpointError, match="step 12 is a copy of that of step 8"):
        run_job(branch, Silent())


def test_a_finished_run_is_not_run_again(undisturbed: tuple[Path, dict[str, Any], Told]) -> None:
    out, stats, _ = undisturbed
    before = (out / METRICS).read_text()
    told = Told()
    assert run_job(tiny_job(out, RUN), told)["params_hash"] == stats["params_hash"]
    assert told.updates == [] and (out / METRICS).read_text() == before


def test_changed_data_and_batches_are_refused(undisturbed: tuple[Path, dict[str, Any], Told]) -> None:
    out = undisturbed[0]
    with pytest.raises(DataStateError, match=r"checkpoint at step 12 was made from other data"):
        run_job(tiny_job(out, replace(RUN, steps=16, data_seed=1)), Silent())
    with pytest.raises(DataStateError, match=r"counts batches of 16 rows, now they have 8; set global_batch_size=16"):
        run_job(tiny_job(out, replace(RUN, steps=16, global_batch_size=8)), Silent())
    assert steps_of(out) == list(range(1, 13)) and checkpoints(out) == [8, 12]


def diverging(params: Any, batch: Any, context: Any, at: int) -> Any:
    """NaN from the batch on whose rows' first tokens have a certain sum: the loss of one step."""
    sums = objective_of("next_token").loss(params, batch, context)
    return replace(sums, loss=jnp.where(batch["tokens"][:, 0].sum() == at, jnp.nan, sums.loss))


@pytest.mark.slow
def test_divergence_names_the_step_and_keeps_the_checkpoints(tmp_path: Path) -> None:
    settings = TinyRun(steps=12, checkpoint_every=2, grad_accum=1)
    job = tiny_job(tmp_path, settings)
    sums = [int(job.batches.batch(step, {})["tokens"][:, 0].sum()) for step in range(12)]
    assert sums.count(sums[6]) == 1
    with pytest.raises(DivergedError, match=r"step 7: loss nan.*not finite\. Its rows .* lower optimizer"):
        run_job(replace(job, objective=Objective(partial(diverging, at=sums[6]))), Silent())
    assert checkpoints(tmp_path) == [4, 6] and steps_of(tmp_path) == list(range(1, 7))
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path / CHECKPOINTS, abstract_params(MODEL)))
    )


def test_a_run_stopped_before_its_first_checkpoint_logs_its_start_once(tmp_path: Path) -> None:
    is_first = True

    def measure(_: Any) -> dict[str, float]:
        if is_first and (tmp_path / METRICS).read_text().count("loss"):
            raise KeyboardInterrupt
        return {"heldout_loss": 1.0}

    job, hooks = tiny_job(tmp_path, SHORT), [Evaluate(2, measure)]
    with pytest.raises(KeyboardInterrupt):
        run_job(job, Silent(), hooks)
    assert checkpoints(tmp_path) == []
    is_first = False
    run_job(job, Silent(), hooks)
    measured = [record["step"] for record in read_log(tmp_path / METRICS) if "heldout_loss" in record]
    assert measured == [0, 2, 4] and steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_measurement_is_logged_at_the_start_when_due_and_after_the_last_step(tmp_path: Path) -> None:
    seen: list[str] = []

    def measure(params: Any) -> dict[str, float]:
        seen.append(hash_params(params))
        return {"heldout_loss": float(len(seen))}

    job, hooks = tiny_job(tmp_path, replace(SHORT, steps=5)), [Evaluate(2, measure)]
    stats = run_job(job, Silent(), hooks)
    measured = [record for record in read_log(tmp_path / METRICS) if "heldout_loss" in record]
    assert measured == [{"step": s, "heldout_loss": n} for n, s in enumerate((0, 2, 4, 5), 1)]
    assert len(set(seen)) == 4 and seen[-1] == stats["params_hash"] and math.isfinite(stats["loss"])


def test_a_measurement_between_log_lines_begins_when_its_steps_are_done(tmp_path: Path) -> None:
    """Its time is not training's, and a step that was still running in it would count as done in no time."""
    ready: list[bool] = []

    def measure(params: Any) -> dict[str, float]:
        ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(params)))
        return {"heldout_loss": 1.0}

    job = tiny_job(tmp_path, replace(SHORT, steps=8))
    train = job.train.model_copy(update={"log_every": 8, "checkpoint": CheckpointConfig(every=8)})
    run_job(replace(job, train=train), Silent(), [Evaluate(3, measure)])
    assert ready == [True] * 4 and steps_of(tmp_path) == [8]


def test_a_run_goes_on_from_given_parameters(undisturbed: tuple[Path, dict[str, Any], Told], tmp_path: Path) -> None:
    start = load_params(undisturbed[0] / CHECKPOINTS, abstract_params(MODEL))
    run_job(replace(tiny_job(tmp_path, replace(SHORT, steps=2)), start=start), Silent())
    assert trained(tmp_path)[0]["loss"] < undisturbed[1]["loss"] + 0.3  # where the first run ended, not where it began
    for before, after in zip(
        jax.tree.leaves(start),
        jax.tree.leaves(load_params(tmp_path / CHECKPOINTS, abstract_params(MODEL))),
        strict=True,
    ):
        np.testing.assert_allclose(before, after, atol=2 * RUN.learning_rate)  # of Adam's first two steps, warming up


@pytest.mark.parametrize(
    ("policy", "owns_start"),
    [
        pytest.param("stop", False, marks=pytest.mark.slow),
        ("stop", True),
        pytest.param("rollback", True, marks=pytest.mark.slow),
    ],
)
def test_initial_weights_that_nobody_needs_leave_the_devices(tmp_path: Path, policy: str, owns_start: bool) -> None:
    """A run that may go back to its beginning needs them, and so does one that was given those of others."""
    job = tiny_job(tmp_path, replace(SHORT, steps=2))
    start = jax.tree.map(jnp.asarray, random_params(MODEL))
    train = job.train.model_copy(update={"faults": FaultsConfig.model_validate({"policy": policy})})
    run_job(replace(job, train=train, start=start, owns_start=owns_start), Silent())
    is_gone = {array.is_deleted() for array in jax.tree.leaves(start)}
    assert is_gone == {owns_start and policy == "stop"}


def test_a_hash_sees_every_bit_name_and_shape() -> None:
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros((2, 1))}
    others = [
        {"a": jnp.array([1.0, np.nextafter(np.float32(2), np.float32(3))]), "b": params["b"]},
        {"a": params["a"], "c": params["b"]},
        {"a": params["a"], "b": jnp.zeros((1, 2))},
        {"a": params["a"].astype(jnp.bfloat16), "b": params["b"]},
    ]
    hashes = {hash_params(tree) for tree in (params, *others)}
    assert len(hashes) == 5 and hash_params(dict(params)) in hashes


@pytest.mark.long
def test_batches_that_depend_on_the_weights_are_made_again_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run_job(job := drawn_job(whole), Silent())
    program = [sys.executable, "-m", "tests.training.drawn_batches", str(killed), "5", "3"]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    stats = run_job(again := drawn_job(killed), Silent())
    assert stats["params_hash"] == expected["params_hash"]
    assert [r["loss"] for r in trained(killed)] == [r["loss"] for r in trained(whole)]
    drawn = [source.drawn for source in (job.batches, again.batches) if isinstance(source, DrawnBatches)]
    assert drawn[1] == drawn[0][3:] and len(set(drawn[0])) == 8


class Noted(Hook):
    """Says what is called, and how many steps are logged by then."""

    def __init__(self, name: str, calls: list[tuple[str, str, int]]) -> None:
        self.name, self.calls = name, calls

    def start(self, run: TrainingRun) -> None:
        self.calls.append((self.name, "start", len(steps_of(run.job.out))))

    def after_step(self, run: TrainingRun) -> None:
        when = "late" if run.step in checkpoints(run.job.out) else "before the save"
        self.calls.append((self.name, when, len(steps_of(run.job.out))))


def test_hooks_are_called_in_order_between_the_log_and_the_checkpoint(tmp_path: Path) -> None:
    calls: list[tuple[str, str, int]] = []
    run_job(
        tiny_job(tmp_path, replace(SHORT, steps=2, checkpoint_every=1)),
        Silent(),
        [Noted("a", calls), Noted("b", calls)],
    )
    assert calls[:2] == [("a", "start", 0), ("b", "start", 0)]
    assert calls[2:] == [(name, "before the save", step) for step in (1, 2) for name in "ab"]


def test_the_clock_stands_still_while_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([9.0, 10.0, 11.0, 20.0, 21.5])
    monkeypatch.setattr("lifecycle.training.run.time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = Clock()
    start, _ = clock.read()
    with clock.paused("evaluation"):  # from 11 to 20
        pass
    assert clock.read()[0] - start == 2.5
    assert clock.spent_s == {"evaluation": 9.0}
    with pytest.raises(AssertionError, match="lunch: not in"), clock.paused("lunch"):
        pass


class Failing(Hook):
    def after_step(self, run: TrainingRun) -> None:
        if run.step == 3:
            raise OSError("no route to the tracker")


def test_a_failing_hook_is_named_and_what_was_saved_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no route to the tracker") as raised:
        run_job(tiny_job(tmp_path, replace(SHORT, checkpoint_every=2)), Silent(), [Failing()])
    assert raised.value.__notes__ == [f"in the hook Failing, after step 3 of {tmp_path}"]
    assert steps_of(tmp_path) == [1, 2, 3] and checkpoints(tmp_path) == [2]


class OnlyGood(RowBatches):
    """Answers without a bad one among them."""

    def batch(self, step: int, params: Params | None = None) -> HostBatch:
        host = super().batch(step, params)
        return {**host, "label": np.ones_like(host["label"])}


@pytest.mark.slow
def test_a_metric_of_which_a_step_has_nothing_is_not_logged(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, TinyRun(objective="kto", steps=1, grad_accum=1))
    batches = OnlyGood.on_mesh(rows_of(TinyRun(objective="kto")), job.train.global_batch_size, job.mesh)
    run_job(replace(job, batches=batches), Silent())
    (record,) = trained(tmp_path)
    assert {"rewards/chosen", "logps/chosen", "logits/chosen", "kl"} < record.keys() and record["count"] > 0
    assert not {name for name in record if "rejected" in name or "margins" in name or "counts/" in name}
