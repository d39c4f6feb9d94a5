"""The training loop, the same for every objective: restore, step, log, measure, save.

What must hold: with the same seed and mesh the final weights are bit-equal, through any number of kills and restarts.
Inside the loop nothing moves between host and device unasked (a transfer guard sees to it), and metrics are fetched
every `log_every` steps only, so that the device never waits for Python.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lifecycle.core.artifact import cpu_seconds
from lifecycle.core.distributed import is_writer
from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import RunLog, read_log, rewind
from lifecycle.core.typing import PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.placement import place_batch, rows_of_process
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.config import TrainConfig
from lifecycle.training.loader import HostBatch, data_state, make_loader, resume_step
from lifecycle.training.objectives.objective import Objective
from lifecycle.training.optimizer import build_optimizer, build_schedule
from lifecycle.training.packing import RowSource
from lifecycle.training.state import TrainState, init_state, state_from_params, state_shardings
from lifecycle.training.step import make_train_step
from lifecycle.weights.names import unstack

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"


class DivergedError(ValueError):
    """The loss or a gradient is not a number."""


@dataclass(frozen=True)
class Evaluation:
    """A measurement: `measure(params)` before the first step, every `every` steps and after the last."""

    every: int
    measure: Callable[[Params], dict[str, float]]


@dataclass(frozen=True)
class Job:
    """One training run: what to minimise, on what, from where, and into which folder."""

    model: ModelConfig
    train: TrainConfig
    mesh: Mesh
    objective: Objective
    rows: RowSource
    start: PRNGKeyArray | Params  # a key: fresh weights; parameters: go on from these
    out: Path
    evaluation: Evaluation | None = None


def run_job(job: Job, progress: Progress) -> dict[str, Any]:
    """Trains to the last step and returns the stage's stats; goes on from the newest whole checkpoint in `job.out`."""
    loop = _Loop(job, progress)
    try:
        loop.restore_or_start()
        loop.run()
        return loop.stats()
    finally:
        loop.close()


def hash_params(params: Params) -> str:
    """SHA-256 over names, dtypes, shapes and values: equal exactly when the weights are bit-equal on any mesh."""
    total = hashlib.sha256()
    for name, array in unstack(params).items():
        host = np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
        total.update(f"{name} {host.dtype} {host.shape}\n".encode() + host.tobytes())
    return total.hexdigest()


class _Loop:
    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress, config = job, progress, job.train
        self.optimizer = build_optimizer(config.optimizer, job.model, config.steps, job.mesh)
        self.schedule = build_schedule(config.optimizer, config.steps)
        self.shardings = state_shardings(job.model, self.optimizer, job.mesh, config.freeze)
        self.held = rows_of_process(job.mesh, config.global_batch_size, jax.process_index())
        self.checkpoints = Checkpointer(
            job.out / CHECKPOINTS, every=config.checkpoint_every, keep=config.keep_checkpoints, progress=progress
        )
        self.log_path = job.out / METRICS
        self.log: RunLog | None = None
        self.batches: grain.DatasetIterator[HostBatch] | None = None

    def restore_or_start(self) -> None:
        job = self.job
        self.state, self.step = self._fresh_state(), 0
        if self.checkpoints.latest_step() is not None:
            restored, data, _ = self.checkpoints.restore(_as_saved(self.state))
            self.step = resume_step(data, job.rows, global_batch_size=job.train.global_batch_size)
            step = jax.device_put(np.int32(self.step), self.shardings.step)
            frozen = self.checkpoints.restore_frozen(self.state.frozen)
            self.state = TrainState(restored["params"], frozen, restored["opt_state"], step)
        else:
            self.checkpoints.save_frozen(self.state.frozen)
        if is_writer():
            rewind(self.log_path, self.step or -1)  # of a run that starts again, not even its first measurement stays
            self.log = RunLog(self.log_path)
        self.batches = make_loader(
            job.rows,
            global_batch_size=job.train.global_batch_size,
            start_step=self.step,
            held=self.held,
        )

    def _fresh_state(self) -> TrainState:
        job = self.job
        if isinstance(job.start, dict):
            return state_from_params(job.start, self.optimizer, self.shardings)
        return init_state(job.model, self.optimizer, self.shardings, job.start)

    def run(self) -> None:
        config = self.job.train
        if self.step == config.steps:
            return
        batch = self._next_batch()
        started = time.perf_counter()
        step = make_train_step(
            self.job.objective,
            self.optimizer,
            self.job.mesh,
            self.shardings,
            config.grad_accum,
            self.job.model.bias_rate,
        )
        options = compiler_options(self.job.mesh.devices.flat[0].device_kind)
        compiled = step.lower(self.state, batch).compile(
            options
        )  # another shape would be an error, not a second program
        self._write(step=self.step, compile_s=time.perf_counter() - started)
        self.mark = (self.step, time.perf_counter(), cpu_seconds())
        if self.job.evaluation is not None and self.step == 0:  # where the run starts from
            self._evaluate(self.job.evaluation)
        while self.step < config.steps:
            with jax.transfer_guard("disallow"):
                self.state, metrics = compiled(self.state, batch)
            self.step += 1
            if self.step < config.steps:
                batch = self._next_batch()
            self._after_step(metrics)

    def _next_batch(self) -> dict[str, jax.Array]:
        assert self.batches is not None
        return place_batch(next(self.batches), self.job.mesh, self.job.train.global_batch_size, self.held)

    def _after_step(self, metrics: dict[str, jax.Array]) -> None:
        config = self.job.train
        is_last = self.step == config.steps
        is_saved = is_last or self.checkpoints.should_save(self.step)
        if is_saved or self.step % config.log_every == 0:  # what is saved has been seen to be finite
            record = self._record(jax.device_get(metrics))
            self.progress.update(self.step, total=config.steps, **record)
        evaluation = self.job.evaluation
        if evaluation is not None and (is_last or self.step % evaluation.every == 0):
            self._evaluate(evaluation)
        if is_saved:  # last: what a checkpoint covers has been measured
            self._save()

    def _evaluate(self, evaluation: Evaluation) -> None:
        jax.block_until_ready(self.state)  # steps that are still running are training's time
        started = time.perf_counter(), cpu_seconds()
        self._write(step=self.step, **evaluation.measure(self.state.params))
        step, wall, cpu = self.mark  # what was spent here is not training's time
        self.mark = (step, wall + time.perf_counter() - started[0], cpu + cpu_seconds() - started[1])

    def _record(self, metrics: dict[str, Any]) -> dict[str, Any]:
        values = {name: float(value) for name, value in metrics.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise DivergedError(
                f"step {self.step}: {values}: not finite. The checkpoints before it are kept in "
                f"{self.checkpoints.folder}; lower optimizer.learning_rate or optimizer.clip_norm"
            )
        step, wall, cpu = self.mark
        self.mark = (self.step, time.perf_counter(), cpu_seconds())
        positions = (self.step - step) * self.job.train.global_batch_size * self.job.train.seq_len
        rates = {
            "learning_rate": float(np.asarray(self.schedule(self.step - 1))),
            "tokens_per_s": positions / (self.mark[1] - wall),
            "cpu_s": self.mark[2] - cpu,
        }
        return self._write(step=self.step, **values, **rates)

    def _write(self, **record: Any) -> dict[str, Any]:
        if self.log is not None:
            self.log.write(**record)
        return record

    def _save(self) -> None:
        config = self.job.train
        state = data_state(self.job.rows, global_batch_size=config.global_batch_size, step=self.step)
        meta = {"step": self.step, "model": self.job.model.plain(), "train": config.plain()}
        self.checkpoints.save(self.step, _as_saved(self.state), state, meta)

    def stats(self) -> dict[str, Any]:
        """What the manifest keeps: read from the log, so that it covers the steps before a kill too."""
        self.checkpoints.wait()
        config = self.job.train
        records = [record for record in read_log(self.log_path) if "loss" in record]
        rates = sorted(record["tokens_per_s"] for record in records)
        return {
            "steps": config.steps,
            "tokens": config.steps * config.global_batch_size * config.seq_len,
            "loss": records[-1]["loss"],
            "tokens_per_s": rates[len(rates) // 2],
            "params_hash": hash_params(self.state.params),
        }

    def close(self) -> None:
        if self.batches is not None:
            self.batches.close()
        if self.log is not None:
            self.log.close()
        self.checkpoints.close()


def _as_saved(state: TrainState) -> dict[str, Any]:
    return {"params": state.trained, "opt_state": state.opt_state}
