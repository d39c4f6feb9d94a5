"""Faulty steps: what is one, what is done about it, and that a killed run does the same."""

import errno
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, RunLog, read_log
from lifecycle.model.params import abstract_params
from lifecycle.testing.jobs import StopAt, TinyRun, tiny_job
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN, Documents
from lifecycle.training import loop
from lifecycle.training.batches import RowBatches
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.home import SharedFolder
from lifecycle.training.checkpoints.integrity import CheckpointError, steps_in
from lifecycle.training.checkpoints.weights import hash_params, load_params
from lifecycle.training.config import FaultsConfig
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.faults import DECAY, WARMUP, counted, first_faults, from_plain, guarded, is_spike, to_plain
from lifecycle.training.hooks.faults import OFFENDING, DivergedError, Faults, GoBack
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.save import Save
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import go_back, run_job
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.passing import PassingBatches
from lifecycle.training.restart import earlier_records, passed_again
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState
from tests.checkpoints import Notes

STEPS, EVERY = 14, 4
JOB = TinyRun(steps=STEPS, checkpoint_every=EVERY, grad_accum=1)


def marks(job: TrainJob, numbers: range = range(40)) -> list[int]:
    """A number by which each batch is known in the step."""
    found = [int(job.batches.batch(number, {})["tokens"].sum()) for number in numbers]
    assert len(set(found)) == len(found)
    return found


def toy(params: Any, batch: Mapping[str, jax.Array], context: Any, faulty: tuple[int, ...], factor: float) -> Sums:
    """Weights drawn to a number of the batch; the loss of the batches with the marks `faulty` is multiplied."""
    mark = batch["tokens"].sum()
    distance = sum(jnp.square(leaf - mark % 97 / 97).sum() for leaf in jax.tree.leaves(params))
    is_faulty = (mark == jnp.asarray(faulty or (-1,))).any()
    return Sums(jnp.where(is_faulty, factor, 1.0) * distance, jnp.float32(1.0))


def toy_job(
    out: Path, numbers: tuple[int, ...], factor: float = math.nan, settings: TinyRun = JOB, **faults: Any
) -> TrainJob:
    """A run whose batches with these numbers are faulty."""
    job = tiny_job(out, settings)
    known = marks(job)
    train = job.train.model_copy(
        update={
            "faults": FaultsConfig(**faults),
            "log_every": 3,
            "checkpoint": job.train.checkpoint.model_copy(update={"keep": 50}),
        }
    )
    faulty = tuple(known[number] for number in numbers)
    return replace(job, train=train, objective=Objective(partial(toy, faulty=faulty, factor=factor)))


def weights(out: Path, step: int) -> str:
    return hash_params(load_params(out / CHECKPOINTS, abstract_params(MODEL), step))


def logged(out: Path) -> list[tuple[int, Any]]:
    return [(r["step"], r.get("action", r.get("loss"))) for r in read_log(out / METRICS) if "loss" in r or "fault" in r]


def test_mean_and_variance_are_those_of_all_good_steps_and_then_fade() -> None:
    draw = np.random.default_rng(0)
    signals = draw.normal([5.0, 0.5], [1.0, 0.2], (60, 2)).astype(np.float32)
    state, count = first_faults(), jax.jit(counted)
    mean, second = signals[0] * 0.0, signals[0] * 0.0  # the moments' own averages, from step 33 on
    for number, pair in enumerate(signals):
        state = count(state, jnp.asarray(pair), jnp.array(number % 7 == 6))
        state = count(state, jnp.array([jnp.nan, 1.0]), jnp.array(True))
        good = signals[[n for n in range(number + 1) if n % 7 != 6]]
        past = min(DECAY, (len(good) - 1) / len(good))
        if number % 7 != 6:
            mean, second = past * mean + (1 - past) * pair, past * second + (1 - past) * pair**2
        if len(good) <= 33:
            np.testing.assert_allclose(state.mean, good.mean(axis=0), rtol=1e-5)
            np.testing.assert_allclose(state.variance, good.var(axis=0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(state.variance, second - mean**2, rtol=1e-3, atol=1e-5)
    assert (int(state.seen), int(state.skipped), int(state.in_row)) == (52, 68, 1)
    again = from_plain(json.loads(json.dumps(to_plain(state))))
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (again, state)), strict=True)
    )


def test_a_spike_is_far_above_the_mean_of_either_signal_after_the_warm_up() -> None:
    known = replace(
        first_faults(),
        seen=np.int32(WARMUP),
        mean=np.array([4, 1], np.float32),
        variance=np.array([0.04, 0.01], np.float32),
    )
    cases: list[tuple[list[float], bool]] = [
        ([5.1, 1.0], False),
        ([5.3, 1.0], True),
        ([4.0, 1.7], True),
        ([4.0, 1.5], False),
        ([0.0, 0.0], False),
    ]
    for signals, expected in cases:
        assert bool(is_spike(6.0, known, jnp.asarray(signals))) is expected, signals
    assert not is_spike(6.0, replace(known, seen=np.int32(WARMUP - 1)), jnp.array([99.0, 99.0]))
    assert not is_spike(None, known, jnp.array([99.0, 99.0]))


def test_a_faulty_update_is_left_out_of_the_state_but_the_schedule_goes_on() -> None:
    guard = jax.jit(partial(guarded, FaultsConfig(policy="skip")))
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(lambda count: 0.1 * count))
    before = TrainState(params, {}, optimizer.init(params), jnp.int32(4), first_faults())
    updates, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), before.opt_state)
    moved = replace(before, trained=jax.tree.map(jnp.subtract, params, updates), opt_state=opt_state, step=jnp.int32(5))
    for loss, norm, is_left_out in [(2.0, 1.0, False), (jnp.nan, 1.0, True), (2.0, jnp.inf, True)]:
        metrics = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm), "accuracy": jnp.float32(1)}
        after, told = guard(before, moved, metrics)
        expected = before if is_left_out else moved
        chex.assert_trees_all_equal((after.trained, after.opt_state[0]), (expected.trained, expected.opt_state[0]))
        assert (after.step, after.opt_state[1].count) == (5, 1)
        assert told["accuracy"] == 1 and told["skipped"] == told["faults_in_row"] == is_left_out


def looked_at(out: Path, signals: list[dict[str, float]], **faults: Any) -> TrainingRun:
    """A run after step 9 whose last steps had these signals, as the hook leaves it."""
    run = TrainingRun(toy_job(out, (), **faults), Silent(), RunLog(out / METRICS), None, 9)  # pyrefly: ignore[bad-argument-type] - no state is read
    run.metrics, run.fetched = dict(signals[-1]), list(zip(range(10 - len(signals), 10), signals, strict=True))
    Faults().after_step(run)
    return run


GOOD, BAD = {"loss": 2.0, "grad_norm": 1.0}, {"loss": 2.0, "grad_norm": math.inf}


def test_a_run_stops_at_the_first_faulty_step_since_the_last_look_with_its_rows_written_out(tmp_path: Path) -> None:
    assert looked_at(tmp_path, [GOOD, GOOD]).metrics == GOOD
    with pytest.raises(DivergedError, match=r"step 8: loss 2, grad_norm inf: not finite\. Its rows are in .*offending"):
        looked_at(tmp_path, [GOOD, BAD, GOOD])
    rows = [json.loads(line) for line in (tmp_path / OFFENDING).read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(7 * 16, 8 * 16)) and all(row["step"] == 8 for row in rows)
    documents, batch = Documents(60, 0), tiny_job(tmp_path, JOB).batches.batch(7, {})
    for row, tokens in zip(rows, batch["tokens"], strict=True):  # what is named is what is in the row
        named = np.concatenate([documents[int(of["document"])][slice(*of["tokens"])] for of in row["documents"]])
        assert named[:SEQ_LEN].tolist() == tokens[: len(named)].tolist()


def test_skipped_steps_are_logged_and_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    first, second = BAD | {"faults_in_row": 1.0}, BAD | {"faults_in_row": 2.0}
    run = looked_at(tmp_path, [first, GOOD | {"faults_in_row": 0.0}, first], policy="skip", limit=2)
    assert run.metrics is None and logged(tmp_path) == [(7, "skipped"), (9, "skipped")]
    with pytest.raises(DivergedError, match=r"step 9: .*not finite, as 1 steps before it \(faults\.limit\)"):
        looked_at(tmp_path, [first, second], policy="skip", limit=2)


def test_a_spike_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(GoBack, match="step 9: loss 2, grad_norm 1: a spike"):
        looked_at(tmp_path, [GOOD | {"faults_in_row": 1.0}], policy="rollback", spike_sigma=6)


FAULTY = (5, 6, 14)  # 5 fails in step 6, so step 5 goes on with 6, which fails too, then with 7; step 12 meets 14


def went_back(out: Path, stop: int | None) -> dict[str, Any]:
    """The stats of a run that goes back to two checkpoints, stopped once."""
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            run_job(toy_job(out, FAULTY, policy="rollback"), StopAt(stop))
    return run_job(toy_job(out, FAULTY, policy="rollback"), Silent())


@pytest.mark.slow
def test_a_run_goes_back_and_passes_over_the_batches_up_to_the_faulty_one(tmp_path: Path) -> None:
    stats = went_back(tmp_path, None)
    faults = [
        (record["step"], record["from_step"], record["passed_over"], record["times"]) for record in stats["faults"]
    ]
    assert faults == [(5, 5, [4, 6], 2), (9, 12, [11, 14], 1)]
    saved = json.loads((tmp_path / CHECKPOINTS / str(STEPS) / "data_state" / "metadata").read_text())
    assert saved["passed_over"] == [[4, 3], [8, 4]]
    steps = [step for step, what in logged(tmp_path) if what != "went back"]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


@pytest.mark.long
def test_stopped_anywhere_a_run_goes_back_alike_to_the_bits_of_one_without_those_batches(tmp_path: Path) -> None:
    expected = went_back(tmp_path / "whole", None)
    for stop in (6, 9, 14):
        out = tmp_path / str(stop)
        stats = went_back(out, stop)
        assert (stats["params_hash"], stats["faults"]) == (expected["params_hash"], expected["faults"])
        assert logged(out) == logged(tmp_path / "whole")
    job = toy_job(tmp_path / "reference", ())
    batches = PassingBatches(job.batches)
    batches.passed = {4: 3, 8: 4}
    assert run_job(replace(job, batches=batches), Silent())["params_hash"] == expected["params_hash"]


@pytest.mark.long
def test_stopped_anywhere_a_run_skips_the_same_steps(tmp_path: Path) -> None:
    """Step 10, after which it goes on, is the first of two faulty ones in a row."""

    def job(out: Path) -> TrainJob:
        return toy_job(out, (5, 9, 10), policy="skip", settings=replace(JOB, checkpoint_every=1))

    expected = run_job(job(tmp_path / "whole"), Silent())
    hashes = [weights(tmp_path / "whole", step) for step in range(1, STEPS + 1)]
    same = [step for step in range(2, STEPS + 1) if hashes[step - 1] == hashes[step - 2]]
    assert same == [6, 10, 11] == [record["step"] for record in expected["faults"]]
    assert "NaN" not in (tmp_path / "whole" / METRICS).read_text()
    for stop in (5, 9, 12):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run_job(job(out), StopAt(stop))
        stats = run_job(job(out), Silent())
        assert (stats["params_hash"], stats["faults"]) == (expected["params_hash"], expected["faults"])
        assert logged(out) == logged(tmp_path / "whole")


@pytest.mark.long
def test_a_run_that_goes_back_too_often_stops_and_goes_on_under_another_policy(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step 5: .*, after going back to step 4 2 times \(faults\.limit\)"):
        run_job(toy_job(tmp_path, (4, 5, 6), policy="rollback", limit=2), Silent())
    assert steps_in(tmp_path / CHECKPOINTS) == [4]
    notes = Notes()
    with pytest.raises(DivergedError, match=r"step 5: .*, after going back to step 4 2 times"):
        run_job(toy_job(tmp_path, (4, 5, 6), policy="rollback", limit=2), notes)
    assert not any("going back" in text for text in notes.texts)
    with pytest.raises(DivergedError, match="step 5: loss nan"):
        run_job(toy_job(tmp_path, (4, 5, 6)), Silent())
    stats = run_job(toy_job(tmp_path, (4, 5, 6), policy="skip"), Silent())
    assert [record["step"] for record in stats["faults"]] == [5, 6, 7]


def test_what_a_run_decided_when_it_went_back_survives_a_restart(tmp_path: Path) -> None:
    """So a launcher that always starts it again does not meet the same fault for ever."""
    job = toy_job(tmp_path, (), policy="rollback", limit=2)
    batches = PassingBatches(job.batches)
    job = replace(job, batches=batches)
    decided = {"step": 5, "action": "went back", "passed_over": [4, 6], "times": 2}
    with RunLog(tmp_path / METRICS) as log:
        for record in ({"step": 4, "loss": 2.0}, decided):
            log.write(**record)
    records = earlier_records(job)
    assert records == [decided] and passed_again(job, 3, records) == [] and batches.number(4) == 4
    assert passed_again(job, 4, records) == [decided] and batches.number(4) == 7
    saved: Any = SimpleNamespace(durable=SimpleNamespace(wait=lambda: None, last_due=lambda step: 4))
    with pytest.raises(DivergedError, match=r"step 5: loss nan, after going back to step 4 2 times \(faults\.limit\)"):
        go_back(job, GoBack(5, "loss nan"), saved, batches, Silent(), records)
    assert earlier_records(toy_job(tmp_path, (), policy="skip")) == []  # which meets the steps again


class CountSteps(Hook):
    """Counts the steps whose metrics were good, those that run again too."""

    count = 0

    def after_step(self, run: TrainingRun) -> None:
        self.count += 1


@pytest.mark.slow
def test_the_time_for_which_saves_fail_goes_on_when_the_run_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes a minute. The save of step 4 has failed when the run goes back from step 6, after 5 minutes; the
    next one that fails is seen after step 4 again, after 9."""
    steps, notes = CountSteps(), Notes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SharedFolder, "make_folders", full)
    settle = Checkpointer.settle
    monkeypatch.setattr(Checkpointer, "settle", lambda self, **_: settle(self, is_waiting=True))
    monkeypatch.setattr(loop, "Save", partial(Save, clock=lambda: 60.0 * steps.count))
    job = toy_job(tmp_path, (5,), policy="rollback")
    settings = job.train.checkpoint.model_copy(update={"max_unsaved_minutes": 5})
    job = replace(job, train=job.train.model_copy(update={"checkpoint": settings}))
    with pytest.raises(CheckpointError, match="No space left"):
        run_job(job, notes, [steps])
    told = [text.partition(" min: ")[0] for text in notes.texts if "unsaved" in text]
    assert told == [f"step {step}: training goes on unsaved, for at most {left}" for step, left in ((6, 5), (4, 1))]
    assert steps.count == 11  # looked at next after step 6 again, 6 minutes after the first failure


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), max_size=6), st.integers(0, 60))
def test_the_batch_of_a_step_follows_from_a_saved_state(faults: list[tuple[int, int]], saved_at: int) -> None:
    """Each fault is some steps behind the checkpoint that the run goes back to; checkpoints only move forward."""

    def unread() -> RowBatches:
        return RowBatches(DocumentRows(Documents(9, 0), 16, 1), 4, [])

    source, checkpoint = PassingBatches(unread()), 0
    for moved, behind in faults:
        checkpoint += moved
        before = [source.number(step) for step in range(checkpoint)]
        last = source.number(checkpoint + behind - 1)
        first = source.pass_over(checkpoint, last)
        assert [source.number(step) for step in range(checkpoint)] == before  # what is done is done
        assert source.number(checkpoint) == last + 1 and first == (before[-1] + 1 if before else 0)
    restored = PassingBatches(unread())
    state = json.loads(json.dumps(source.state(checkpoint + saved_at)))
    assert restored.restore(state) == checkpoint + saved_at
    assert [restored.number(step) for step in range(200)] == [source.number(step) for step in range(200)]
