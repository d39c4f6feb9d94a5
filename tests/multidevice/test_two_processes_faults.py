"""Two real processes meet faults: both go back alike, and a device that computes wrongly is named."""

import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.timesheet import TIMES, read_sessions
from lifecycle.model.params import abstract_params
from lifecycle.testing.jobs import TinyRun, rows_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN
from lifecycle.training.batches import RowBatches
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.config import FaultsConfig
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.replay import Replay
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.run import TrainingRun
from tests.checkpoints import Notes
from tests.endtoend.command_line import Debug
from tests.multidevice.test_multidevice_replay import flipped
from tests.multidevice.test_two_processes import CLOSE, run_processes

pytestmark = pytest.mark.long

RUN = TinyRun(steps=14, checkpoint_every=4, is_recorded=True)
FAULTY = (5, 6, 14)  # batches: 5 fails in step 6, so step 5 goes on with 6, which fails too, then with 7
PLACES = np.random.default_rng(0).integers(1, 2**18, SEQ_LEN, np.int32)  # a row is known by its weighted sum


def with_faults(objective: Objective, rows: list[int]) -> Objective:
    """The objective, whose loss is not a number on a device that has one of the rows."""

    def faulty(params: Any, batch: Any, context: Any) -> Sums:
        sums = objective.loss(params, batch, context)
        is_faulty = jnp.isin((batch["tokens"] * PLACES).sum(axis=-1), jnp.asarray(rows)).any()
        return replace(sums, loss=jnp.where(is_faulty, math.nan, 1.0) * sums.loss)

    return replace(objective, loss=faulty)


def faulty_job(out: Path, **mesh: int) -> TrainJob:
    """A run that goes back from each batch of `FAULTY`, one row of which is faulty, in one process of several."""
    whole = RowBatches(rows_of(RUN), 16, range(16), prefetch=1)
    marks = [(whole.batch(number)["tokens"] * PLACES).sum(axis=-1) for number in range(24)]
    whole.close()
    faulty = [int(marks[number][3 * number % 16]) for number in FAULTY]
    assert (np.isin(marks, faulty).sum(axis=-1).nonzero()[0] == FAULTY).all()
    job = tiny_job(out, replace(RUN, mesh=mesh))
    train = job.train.model_copy(update={"faults": FaultsConfig(policy="rollback"), "log_every": 3})
    return replace(job, train=train, objective=with_faults(job.objective, faulty))


class KillAll(Hook):
    def __init__(self, step: int | None) -> None:
        self._step = step

    def after_step(self, run: TrainingRun) -> None:
        if run.step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(out: Path, kill_at: int | None = None) -> None:
    notes = Notes()
    stats = run_job(faulty_job(out, fsdp=2), notes, [KillAll(kill_at)])
    decided = [text for text in notes.texts if "going back" in text]
    print("ENDED", json.dumps([stats["params_hash"], decided, stats.get("faults")]), flush=True)


PROCESS = """
import sys
from pathlib import Path
from lifecycle.core import distributed
distributed.start()
from tests.multidevice.test_two_processes_faults import train
train(Path(sys.argv[1]), *map(int, sys.argv[2:]))
"""


def ended(out: Path, *kill_at: str, status: int = 0) -> list[Any]:
    """Of each process: the hash of its weights, what it decided, and, of the one that writes, the faults of the run."""
    outputs = run_processes([sys.executable, "-c", PROCESS, str(out), *kill_at], count=2, devices=1, status=status)
    return [json.loads(line[6:]) for text in outputs for line in text.splitlines() if line.startswith("ENDED")]


def batches(out: Path) -> list[set[int]]:
    """The numbers of the batches that each process has taken."""
    names = [path.stem.split("-") for path in (out / "batches").iterdir()]
    return [{int(number) for number, first in names if int(first) == of} for of in sorted({int(n) for _, n in names})]


def test_two_processes_go_back_alike_and_as_one_does(tmp_path: Path) -> None:
    whole, killed, one = (tmp_path / name for name in ("whole", "killed", "one"))
    first, second = ended(whole)
    faults = [(record["step"], record["from_step"], record["passed_over"]) for record in first[2]]
    assert faults == [(5, 5, [4, 6]), (9, 12, [11, 14])]
    assert first[:2] == second[:2] and len(first[1]) == 3
    assert batches(whole) == [set(range(21))] * 2

    ended(killed, "7", status=-signal.SIGKILL)  # a step that comes only after both faults before step 8
    assert steps_in(killed / CHECKPOINTS) == [4]
    shutil.rmtree(killed / "batches")
    resumed = first[0], first[1][-1:]  # bit-equal, and the same batches are passed over
    assert ended(killed) == [[*resumed, first[2]], [*resumed, None]]
    assert batches(killed) == [set(range(7, 21))] * 2  # at once: the faulty ones are not met again

    stats = run_job(faulty_job(one), Silent())
    assert stats["faults"] == first[2] and batches(one) == [set(range(21))]
    found = [load_params(out / CHECKPOINTS, abstract_params(MODEL)) for out in (whole, one)]
    largest = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, found), strict=True))
    print(f"weights {largest:.1e}")
    assert largest < CLOSE


SILENT = """
import sys
from lifecycle.cli.main import main
from tests.multidevice.test_two_processes_faults import flip_a_bit
flip_a_bit(int(sys.argv.pop(1)))
main()
"""


def flip_a_bit(step: int) -> None:
    """Makes the last device of this job compute with a changed weight after a step; step 0 does not come."""
    look = Replay.after_step

    def after_step(self: Replay, run: TrainingRun) -> None:
        if run.step == step:
            embed = flipped(run.state.trained["embed"], jax.devices()[-1])
            run.state = replace(run.state, trained={**run.state.trained, "embed": embed})
        look(self, run)

    Replay.after_step = after_step


def test_a_run_whose_device_computes_wrongly_stops_and_goes_on_before_it(tmp_path: Path) -> None:
    """Two replicas, so both devices with that shard are named."""
    calm, faulty = Debug(tmp_path / "calm"), Debug(tmp_path / "faulty")
    calm.succeed("run", "--until", "tokens")
    shutil.copytree(calm.root, faulty.root)
    settings = ["--until", "pretrain", "mesh.replica=2", "mesh.fsdp=2", "train.pretrain.faults.replay_every=3"]

    def run(of: Debug, step: int, status: int = 0) -> list[str]:
        program = [sys.executable, "-c", SILENT, str(step), *of.command("run", *settings)[1:]]
        merged = ["bash", "-c", 'exec "$@" 2>&1', "bash", *program]
        return [" ".join(text.split()) for text in run_processes(merged, count=2, devices=2, status=status)]

    run(calm, 0)
    first, second = run(faulty, 17, status=1)
    assert "after step 18, devices that computed the same rows with the same weights have different bits" in first
    assert "of process 0, " in first and "of process 1. Leave them out" in first and "Traceback" not in first
    assert "different bits" not in second  # one process speaks
    (partial_folder,) = faulty.folder.glob("pretrain-*.partial")
    assert max(steps_in(partial_folder / CHECKPOINTS)) == 15
    assert [session.ended for session in read_sessions(partial_folder / TIMES)] == ["CorruptionError"]
    run(faulty, 0)
    weights = [of.artifact("pretrain").stats["params_hash"] for of in (calm, faulty)]
    assert weights[0] == weights[1]
