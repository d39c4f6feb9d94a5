"""The state that a job starts or goes on from: its newest checkpoint, durable or local, or its initial weights."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax

from lifecycle.core.progress import Progress
from lifecycle.core.runlog import METRICS, RunLog, rewind
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.faults import fault_shardings, first_faults, from_plain
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.run import FAULTS
from lifecycle.training.state import TrainState, abstract_state, init_state, state_from_params


@dataclass(frozen=True)
class Saved:
    """A job's checkpoints: the durable ones and, if the settings ask for them, the hosts' own."""

    durable: Checkpointer
    local: LocalCheckpoints | None

    def drop_after(self, step: int) -> None:
        """Deletes those after `step`."""
        self.durable.drop_after(step)
        if self.local is not None:
            self.local.drop_after(step)


def open_local(job: TrainJob, progress: Progress) -> "closing[LocalCheckpoints]":
    """The job's local checkpoints."""
    settings = job.train.checkpoint.local
    assert settings is not None
    return closing(LocalCheckpoints(settings, job.out, job.out / CHECKPOINTS, progress))


def restore_or_start(
    job: TrainJob, optimizer: optax.GradientTransformation, shardings: TrainState, saved: Saved
) -> tuple[TrainState, int]:
    """The state of the newest checkpoint, durable or local, or a fresh one, and its number of finished steps."""
    durable, like = saved.durable.latest_step(), abstract_state(job.model, optimizer, shardings)
    found = saved.local.restore(like.saved, newer_than=durable or 0) if saved.local is not None else None
    if found is None and durable is None:
        state = fresh_state(job, optimizer, shardings)
        saved.durable.save_frozen(state.frozen)
        return with_faults(job, state, {}), 0
    if found is not None:
        arrays, data = found.state, found.data_state
    else:
        arrays, data, _ = saved.durable.restore(like.saved)
    step = job.batches.restore({name: value for name, value in data.items() if name != FAULTS})
    frozen = saved.durable.restore_frozen(like.frozen)
    finished = jax.device_put(np.int32(step), shardings.step)
    return with_faults(job, TrainState(arrays["params"], frozen, arrays["opt_state"], finished), data), step


def fresh_state(job: TrainJob, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """The state before the first step."""
    if isinstance(job.start, dict):
        return state_from_params(job.start, optimizer, shardings)
    return init_state(job.model, optimizer, shardings, job.start)


def with_faults(job: TrainJob, state: TrainState, data: dict[str, Any]) -> TrainState:
    """The state with what a checkpoint's data state says of the steps before it, if the step looks for faults."""
    if not job.train.faults.is_guarded:
        return state
    faults = from_plain(data[FAULTS]) if FAULTS in data else first_faults()
    return replace(state, faults=jax.device_put(faults, fault_shardings(job.mesh)))


def open_log(job: TrainJob, step: int, records: Iterable[Mapping[str, Any]]) -> RunLog:
    """The run log without the records of steps that will run again, and with these records."""
    rewind(job.out / METRICS, step or -1)  # a run that starts over drops even its first measurement
    log = RunLog(job.out / METRICS)
    for record in records:
        log.write(**record)
    return log
