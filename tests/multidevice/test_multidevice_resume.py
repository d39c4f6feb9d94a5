"""A job that comes back on another mesh goes on from its own checkpoint: the same batches, and the same curve."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.model.params import Params
from lifecycle.testing.jobs import StopAt, TinyRun, rows_of, tiny_job
from lifecycle.training.batches import HostBatch, RowBatches
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job

CLOSE = 1e-6
RUN = TinyRun(steps=8, checkpoint_every=4, mesh={"fsdp": 2, "tensor": 2, "replica": 2})
MESHES: list[Any] = [{}, pytest.param({"fsdp": 8}, marks=pytest.mark.long)]


class Watched(RowBatches):
    """Rows that remember what was asked for."""

    def batch(self, step: int, params: Params | None = None) -> HostBatch:
        host = super().batch(step, params)
        self.__dict__.setdefault("seen", {})[step] = host["tokens"]
        return host


def job_on(out: Path, mesh: dict[str, int]) -> TrainJob:
    job = tiny_job(out, replace(RUN, mesh=mesh))
    return replace(job, batches=Watched.on_mesh(rows_of(RUN), RUN.global_batch_size, job.mesh))


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_log(out / METRICS) if "loss" in record]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainJob]:
    out = tmp_path_factory.mktemp("whole")
    job = job_on(out, RUN.mesh)
    run_job(job, Silent())
    return out, job


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped with its checkpoint of step 4."""
    out = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        run_job(job_on(out, RUN.mesh), StopAt(6))
    return out


@pytest.mark.slow  # the default tests have the data order for any number of processes
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_run_goes_on_with_the_same_batches_and_losses(
    whole: tuple[Path, TrainJob], stopped: Path, tmp_path: Path, mesh: dict[str, int]
) -> None:
    out = tmp_path / "moved"
    shutil.copytree(stopped, out)
    job = job_on(out, mesh)
    run_job(job, Silent())
    expected, seen = vars(whole[1].batches)["seen"], vars(job.batches)["seen"]
    assert sorted(seen) == [4, 5, 6, 7]
    assert all(np.array_equal(seen[step], expected[step]) for step in seen)
    assert len(losses(out)) == 8 and losses(out)[:4] == losses(whole[0])[:4]
    np.testing.assert_allclose(losses(out), losses(whole[0]), atol=CLOSE, rtol=0)


def test_a_process_takes_up_a_state_of_any_number_of_processes() -> None:
    """What several processes make of a state that one saved are the parts of its batches."""
    rows = rows_of(RUN)
    one = RowBatches(rows, 16, range(16))
    state = one.state(3)
    parts = [RowBatches(rows, 16, range(4 * process, 4 * process + 4)) for process in range(4)]
    assert [part.restore(state) for part in parts] == [3] * 4
    for step in (3, 4, 5):
        batch, pieces = one.batch(step), [part.batch(step) for part in parts]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)
        assert all(np.array_equal(joined[name], batch[name]) for name in batch)
    for source in (one, *parts):
        source.close()
