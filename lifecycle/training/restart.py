"""The state that a job starts or goes on from: its newest checkpoint, durable or local, or its initial weights."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import METRICS, RunLog, read_log, rewind
from lifecycle.core.timesheet import WENT_BACK
from lifecycle.core.typing import PRNGKeyArray
from lifecycle.model.params import Params, abstract_params
from lifecycle.training.checkpoints.agreement import from_first
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.continued import load_data_state, load_opt_state, require_step
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.items import PARAMS
from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.faults import fault_shardings, first_faults, from_plain
from lifecycle.training.freeze import split
from lifecycle.training.job import Continued, TrainJob
from lifecycle.training.passing import PassingBatches
from lifecycle.training.rounding import holding
from lifecycle.training.run import FAULTS, NUM_TOKENS
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


def open_local(job: TrainJob, durable: Checkpointer, progress: Progress) -> "closing[LocalCheckpoints]":
    """The job's local checkpoints, beside the durable ones."""
    settings = job.train.checkpoint.local
    assert settings is not None
    return closing(LocalCheckpoints(settings, job.out, durable.run_id(), progress))


class Begun(NamedTuple):
    """What a session goes on from: a state, its number of finished steps, and how many tokens these have seen."""

    state: TrainState
    step: int
    num_tokens: int


def restore_or_start(
    job: TrainJob, optimizer: optax.GradientTransformation, shardings: TrainState, saved: Saved
) -> Begun:
    """The newest checkpoint, durable or local, or a fresh state."""
    durable = from_writer(saved.durable.latest_step() or 0) or None  # other hosts may still see what was renamed
    like = abstract_state(job.model, optimizer, shardings, holding(job.train.optimizer, job.model))
    first = job.first_step if durable is None else durable
    found = saved.local.restore(like.saved, newer_than=first) if saved.local is not None else None
    if found is None and durable is None:
        if isinstance(job.start, Continued):
            return continued_state(job, job.start, like, saved.durable)
        state = first_state(job, job.start, optimizer, shardings)
        saved.durable.save_frozen(state.kept)
        return Begun(with_faults(job, state, {}), 0, 0)
    if found is not None:
        arrays, data = found.state, found.data_state
    else:
        arrays, data, _ = saved.durable.restore(like.saved)
    step = job.batches.restore(of_batches(data))
    require_its_own(job, step, durable if found is None else found.step)
    frozen = saved.durable.restore_frozen(like.kept)
    frozen |= {name: arrays[name] for name in like.frozen.keys() - like.kept.keys()}
    finished = jax.device_put(np.int32(step), shardings.step)
    state = TrainState(arrays["params"], frozen, arrays["opt_state"], finished)
    return Begun(with_faults(job, state, data), step, data[NUM_TOKENS])


def require_its_own(job: TrainJob, step: int, named: int | None) -> None:
    """Raises `CheckpointError` for a checkpoint under the name of another step: its own would never be written."""
    if step != named:
        raise CheckpointError(
            f"{job.out.absolute()}: the checkpoint of step {named} is a copy of that of step {step}, under another "
            f"name; delete the folder {named}"
        )


def of_batches(data: Mapping[str, Any]) -> dict[str, Any]:
    """The batches' part of a checkpoint's data state."""
    return {name: value for name, value in data.items() if name not in (FAULTS, NUM_TOKENS)}


def continued_state(job: TrainJob, start: Continued, like: TrainState, checkpoints: Checkpointer) -> Begun:
    """The state in another run's checkpoint; `like` has its shapes and shardings."""
    require_step(start.folder, start.step)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    saved = abstract_params(job.model)
    params = load_params(start.folder, saved, start.step, shardings.params, dtypes_of=like.params, item=PARAMS)
    trained, frozen = split(params, like.frozen)
    checkpoints.save_frozen(frozen)
    opt_state = load_opt_state(start.folder, start.step, like.opt_state)
    data = load_data_state(start.folder, start.step)
    step = job.batches.continue_from(of_batches(data))
    require_its_own(job, step, start.step)
    finished = jax.device_put(np.int32(step), shardings.step)
    return Begun(with_faults(job, TrainState(trained, frozen, opt_state, finished), data), step, data[NUM_TOKENS])


def first_state(
    job: TrainJob, start: PRNGKeyArray | Params, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """The state before the first step."""
    settings = job.train.optimizer
    hold = holding(settings, job.model)
    if isinstance(start, dict):
        return state_from_params(start, optimizer, shardings, hold)
    return init_state(job.model, optimizer, shardings, start, settings.base_width, hold)


def release_start(job: TrainJob) -> None:
    """Deletes the initial weights from the devices, if they are the job's own and it cannot begin again. Beside an
    adapter they would take as much as the whole state: of 70 B parameters in float32, 17.6 GB on each of 16 chips."""
    if job.owns_start and isinstance(job.start, dict) and job.train.faults.policy != "rollback":
        for array in jax.tree.leaves(job.start):
            array.delete()


def with_faults(job: TrainJob, state: TrainState, data: dict[str, Any]) -> TrainState:
    """The state with what a checkpoint's data state says of the steps before it, if the step looks for faults."""
    if not job.train.faults.is_guarded:
        return state
    faults = from_plain(data[FAULTS]) if FAULTS in data else first_faults()
    return replace(state, faults=jax.device_put(faults, fault_shardings(job.mesh)))


def earlier_records(job: TrainJob) -> list[dict[str, Any]]:
    """The log's records of the times that the run went back, before it was started again; none under another policy,
    which meets those steps again. All processes have what the writing one reads."""
    if job.train.faults.policy != "rollback":
        return []
    if not is_writer():
        return from_first(None) or []
    found = {record["step"]: record for record in read_log(job.out / METRICS) if record.get("action") == WENT_BACK}
    return from_first(list(found.values())) or []


def passed_again(job: TrainJob, step: int, went_back: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Passes over what the run has decided to, when it went back to this step; the record of it, if there is one."""
    assert isinstance(job.batches, PassingBatches)
    records = [record for record in went_back if record["step"] == step + 1]
    for record in records:
        job.batches.pass_over(step, record["passed_over"][1])
    return records


def open_log(job: TrainJob, step: int, records: Iterable[Mapping[str, Any]]) -> RunLog:
    """The run log without the records of steps that will run again, and with these records."""
    rewind(job.out / METRICS, step or -1, records)  # a run that starts over drops even its first measurement
    return RunLog(job.out / METRICS)
