"""Runs that learn from a teacher: killed ones go on to the same bits, and the teacher is what it was."""

from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.jobs import StopAt, TinyRun, held_by, objective_of, rows_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.checkpoints.weights import hash_params
from lifecycle.training.config import FaultsConfig
from lifecycle.training.heldout import heldout_means
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.trainer import Trainer

RUN = TinyRun(objective="distillation", steps=5, checkpoint_every=2, mesh={"replica": 2})


def job_in(out: Path) -> tuple[TrainJob, Evaluate]:
    """With everything that reads the teacher: steps, replays of them on two replicas, held-out measurements."""
    job = tiny_job(out, RUN)
    job = replace(job, train=job.train.model_copy(update={"faults": FaultsConfig(replay_every=2)}))
    means = heldout_means(MODEL, job.objective, rows_of(replace(RUN, data_seed=1)), 16, job.mesh, job.held)
    return job, Evaluate(2, means.measure, means.prepare)


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_bits_and_its_teacher_stays(tmp_path: Path) -> None:
    job, measured = job_in(tmp_path / "whole")
    before = hash_params(job.held["teacher"])
    expected = run_job(job, Silent(), [measured])
    stopped, hook = job_in(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run_job(stopped, StopAt(3), [hook])
    stats = run_job(*[(found := job_in(tmp_path / "stopped"))[0], Silent(), [found[1]]])
    assert stats["params_hash"] == expected["params_hash"] and stats["loss"] == expected["loss"] > 0
    assert hash_params(job.held["teacher"]) == before  # no step has taken its buffers


@pytest.mark.long
def test_a_trainer_of_ones_own_has_a_teacher_too() -> None:
    objective = objective_of("distillation", beta=0.0)
    batch = next(one_epoch(rows_of(RUN), global_batch_size=8))
    trainer = Trainer(MODEL, objective, steps=2, held=held_by(objective, Trainer(MODEL, objective, 1).mesh))
    first = float(trainer.step(batch)["loss"])
    sums = jax.jit(objective)(
        Trainer(MODEL, objective, steps=2).params | trainer.held, shard_batch(batch, trainer.mesh)
    )
    np.testing.assert_allclose(first, sums.loss / sums.count, rtol=1e-6)
    chex.assert_tree_all_finite(trainer.params)
