"""Training runs of a few seconds, shared by tests of the step, the loop and the mesh.

As a program it is one process of a training job, for tests that kill it or start several: `python -m
lifecycle.testing.jobs OUT SETTINGS`, the settings as JSON (`TinyRun`); the writing process prints the stats as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.core import distributed
from lifecycle.core.progress import Silent
from lifecycle.core.stopping import RESTART_STATUS, Stopped
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.parallel.placement import rows_of_process
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import (
    MODEL,
    SEQ_LEN,
    TEACHER,
    Sources,
    document_rows,
    labelled_rows,
    mixed_rows,
    pair_rows,
    policy_rows,
    step_rows,
)
from lifecycle.training.batches import HostBatch, RowBatches
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.config import FaultsConfig, TrainConfig
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import CHECKPOINTS, Continued, Origin, TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import Objective, build_objective
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.training.packing import RowSource
from lifecycle.training.run import TrainingRun
from lifecycle.training.token_rows import TokenRows


class RecordedBatches(RowBatches):
    """Writes each batch's tokens of this process into `folder`: `STEP-FIRST_ROW.npy`."""

    folder: Path
    first: int

    def batch(self, step: int, params: Params | None = None) -> HostBatch:
        """The batch, which is written too."""
        host = super().batch(step, params)
        np.save(self.folder / f"{step}-{self.first}.npy", host["tokens"])
        return host


class StopAt(Silent):
    """Progress that ends a run when a step is done, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Raises `KeyboardInterrupt` at the step."""
        if done == self.step:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class TinyRun:
    """The settings in which the tests' runs differ."""

    objective: str = "next_token"
    steps: int = 10
    optimizer: str = "adamw"
    grad_accum: int = 2
    global_batch_size: int = 16
    checkpoint_every: int = 1000
    checkpoint: dict[str, Any] = field(default_factory=dict)  # its other settings
    learning_rate: float = 3e-3
    average_decay: float = 0.0
    seed: int = 0
    data_seed: int = 0
    kill_at: int | None = None
    kill_by: str = "SIGKILL"  # by process 0, which gets it itself
    kill_all: bool = False  # every process gets it
    kill_after: int | None = None  # the step of a checkpoint that must be complete first
    hang_at: int | None = None  # the step after which process 0 hangs, once
    hang_by: str = "sleep"  # or a signal
    hang_s: float = 600  # what the watchdog takes for a hang
    is_mixed: bool = False  # three sources of few rows, cut and packed, whose epochs roll over
    mixture: dict[str, float] | None = None  # of the `Sources`; {}: all their documents as they are
    seq_len: int = SEQ_LEN
    goes_on_from: tuple[str, int] | None = None  # a run's folder, and the step of its checkpoint
    is_recorded: bool = False  # each process writes the rows that it trains on
    mesh: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # of the objective

    def train(self) -> TrainConfig:
        """The training stage's config."""
        schedule = ScheduleConfig(kind="constant", warmup_steps=2)  # runs of any length share their compiled step
        optimizer: dict[str, Any] = {"name": self.optimizer, "learning_rate": self.learning_rate, "weight_decay": 0.1}
        optimizer["average_decay"] = self.average_decay
        of_dpo = {"loss": {"sigmoid": 1, "sft": 0.5}}
        own: dict[str, Any] = {"dpo": of_dpo, "distillation": {"teacher": "wide"}}.get(self.objective, {})
        own |= self.settings
        return objective_kind(self.objective).settings(
            steps=self.steps,
            seq_len=self.seq_len,
            global_batch_size=self.global_batch_size,
            grad_accum=self.grad_accum,
            optimizer=OptimizerConfig(**optimizer, schedule=schedule),
            log_every=1,
            checkpoint=CheckpointConfig(every=self.checkpoint_every, **self.checkpoint),
            faults=FaultsConfig(hang_s=self.hang_s),
            **own,
        )


def objective_of(name: str, model: ModelConfig = MODEL, **settings: Any) -> Objective:
    """A registered objective of a model, with these settings instead of the tiny run's."""
    train = TinyRun(objective=name).train().model_copy(update=settings)
    return build_objective(model, train, dict.fromkeys(train.held, TEACHER))


def held_by(objective: Objective, mesh: Mesh) -> Params:
    """The parameters that an objective holds beside its own model's, of the `TEACHER`."""
    shardings = tree_shardings(mesh, logical_axes(TEACHER))
    return {name: jax.device_put(random_params(TEACHER, 1), shardings) for name in objective.held}


ROWS: dict[str, Callable[[int], RowSource]] = {
    "pairs": pair_rows, "labelled": labelled_rows, "prompts": policy_rows, "steps": step_rows
}  # fmt: skip


def rows_of(settings: TinyRun) -> RowSource:
    """The rows that the run's objective takes."""
    if settings.is_mixed:
        return mixed_rows(SEQ_LEN)
    if settings.mixture is not None:
        return TokenRows(Sources(18, settings.data_seed), settings.seq_len, settings.mixture, settings.data_seed)
    rows = ROWS.get(objective_kind(settings.objective).rows, document_rows)
    return rows(settings.data_seed)


def batches_of(out: Path, settings: TinyRun, mesh: Mesh) -> RowBatches:
    """The run's batches, recorded in `out` if the settings say so."""
    size = settings.global_batch_size
    if not settings.is_recorded:
        return RowBatches.on_mesh(rows_of(settings), size, mesh)
    recorded = RecordedBatches.on_mesh(rows_of(settings), size, mesh)
    recorded.folder, recorded.first = out / "batches", rows_of_process(mesh, size, jax.process_index())[0]
    recorded.folder.mkdir(parents=True, exist_ok=True)
    return recorded


def tiny_job(out: Path, settings: TinyRun) -> TrainJob:
    """The run as a job that writes into `out`."""
    mesh = build_mesh(MeshConfig(**settings.mesh))
    train = settings.train()
    model = train.with_copy(train.trained(MODEL))
    start: Origin = jax.device_get(random_params(model, settings.seed))  # drawing them on devices is a long program
    if settings.goes_on_from is not None:
        folder, step = settings.goes_on_from
        start = Continued(Path(folder) / CHECKPOINTS, step)
    objective = build_objective(model, train, dict.fromkeys(train.held, TEACHER))
    return TrainJob(
        model=model,
        train=train,
        mesh=mesh,
        objective=objective,
        held=held_by(objective, mesh),
        batches=batches_of(out, settings, mesh),
        start=start,
        out=out,
    )


class KillAt(Silent):
    """Sends its own process a signal when a step is reported and a file exists; SIGKILL as the kernel would, SIGTERM as
    an orchestrator."""

    def __init__(self, step: int | None, file: Path | None, number: signal.Signals = signal.SIGKILL) -> None:
        self.step, self.file, self.number = step, file, number

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Sends the signal at the step, once the file exists."""
        if done == self.step:
            while self.file is not None and not self.file.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), self.number)


class HangAt(Hook):
    """Hangs its process after a step, as a stuck file system or host does; a file says that it has, so that it does not
    happen again after a restart."""

    def __init__(self, step: int | None, by: str, mark: Path) -> None:
        self.step, self.by, self.mark = step, by, mark

    def after_step(self, run: TrainingRun) -> None:
        """Sleeps for ever, or sends the signal."""
        if run.step != self.step or self.mark.exists() or not distributed.is_writer():
            return
        self.mark.touch()
        if self.by != "sleep":
            os.kill(os.getpid(), signal.Signals[self.by])
        while True:
            time.sleep(1)


def command(out: Path, settings: TinyRun) -> list[str]:
    """The command line of one process of this job."""
    return [sys.executable, "-m", "lifecycle.testing.jobs", str(out), json.dumps(asdict(settings))]


def main() -> None:
    """Runs the job of the command line, as one process of it, and prints its stats as JSON. Stopped in order, it ends
    with the status of `lifecycle`."""
    distributed.start()
    out, settings = Path(sys.argv[1]), TinyRun(**json.loads(sys.argv[2]))
    checkpoint = out / CHECKPOINTS / str(settings.kill_after) if settings.kill_after is not None else None
    kill_at = settings.kill_at if distributed.is_writer() or settings.kill_all else None
    progress = KillAt(kill_at, checkpoint, signal.Signals[settings.kill_by])
    try:
        stats = run_job(tiny_job(out, settings), progress, [HangAt(settings.hang_at, settings.hang_by, out / "hung")])
    except Stopped as stopped:
        print(stopped, flush=True)
        os._exit(RESTART_STATUS)
    if distributed.is_writer():
        print(json.dumps(stats))


if __name__ == "__main__":
    main()
