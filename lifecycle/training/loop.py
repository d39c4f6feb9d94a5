"""The training loop, the same for every objective: restore, step, hooks.

What must hold: with the same seed and mesh the final weights are bit-equal, through any number of kills and restarts. A
step makes no implicit transfer between host and device (a transfer guard enforces it), and metrics are fetched only if
a hook needs them, so that the device does not wait for Python.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import jax
import numpy as np
import optax

from lifecycle.core.distributed import is_writer
from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import METRICS, RunLog, read_log, rewind
from lifecycle.core.stopping import Stopped, StopRequest
from lifecycle.parallel.placement import rows_of_process, shard_batch
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.local import LocalCheckpoints
from lifecycle.training.checkpoints.weights import hash_params
from lifecycle.training.hooks.finite import Finite
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.log import Log
from lifecycle.training.hooks.save import Save
from lifecycle.training.hooks.save_local import SaveLocal
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.optimizer import build_optimizer, build_schedule
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState, abstract_state, init_state, state_from_params, state_shardings
from lifecycle.training.step import make_train_step

type CompiledStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def run_job(job: TrainJob, progress: Progress, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains to the last step and returns the stage's stats; resumes from the newest intact checkpoint in `job.out`.

    `hooks` run after a step is logged and before it is saved. Raises `Stopped` after SIGTERM, once the step is saved.
    """
    train = job.train
    optimizer = build_optimizer(train.optimizer, job.model, train.steps, job.mesh)
    shardings = state_shardings(job.model, optimizer, job.mesh, train.freeze)
    with ExitStack() as opened:
        checkpoints = Checkpointer(job.out / CHECKPOINTS, train.checkpoint, progress)
        opened.enter_context(closing(checkpoints))
        opened.enter_context(closing(job.batches))
        local = opened.enter_context(open_local(job, progress)) if train.checkpoint.local is not None else None
        state, step = restore_or_start(job, optimizer, shardings, checkpoints, local)
        log = opened.enter_context(open_log(job, step)) if is_writer() else None
        run = TrainingRun(job, progress, log, state, step)
        log_metrics = Log(train.log_every, build_schedule(train.optimizer, train.steps))
        if not run.is_last:
            saving = (*([SaveLocal(local)] if local is not None else []), Save(checkpoints))
            train_steps(run, optimizer, shardings, (Finite(), log_metrics, *hooks, *saving))
        if run.is_stopping:
            raise Stopped(f"stopped after step {run.step} of {train.steps}, which is saved")
        if local is not None:
            local.delete()
        return stats(run)


def restore_or_start(
    job: TrainJob,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    checkpoints: Checkpointer,
    local: LocalCheckpoints | None = None,
) -> tuple[TrainState, int]:
    """The state of the newest checkpoint, durable or local, or a fresh one, and its number of finished steps."""
    durable, like = checkpoints.latest_step(), abstract_state(job.model, optimizer, shardings)
    found = local.restore(like.saved, newer_than=durable or 0) if local is not None else None
    if found is None and durable is None:
        state = fresh_state(job, optimizer, shardings)
        checkpoints.save_frozen(state.frozen)
        return state, 0
    if found is not None:
        saved, data = found.state, found.data_state
    else:
        saved, data, _ = checkpoints.restore(like.saved)
    step = job.batches.restore(data)
    frozen = checkpoints.restore_frozen(like.frozen)
    finished = jax.device_put(np.int32(step), shardings.step)
    return TrainState(saved["params"], frozen, saved["opt_state"], finished), step


def fresh_state(job: TrainJob, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainState:
    """The state before the first step."""
    if isinstance(job.start, dict):
        return state_from_params(job.start, optimizer, shardings)
    return init_state(job.model, optimizer, shardings, job.start)


def open_local(job: TrainJob, progress: Progress) -> "closing[LocalCheckpoints]":
    """The job's local checkpoints."""
    settings = job.train.checkpoint.local
    assert settings is not None
    return closing(LocalCheckpoints(settings, job.out, job.out / CHECKPOINTS, progress))


def open_log(job: TrainJob, step: int) -> RunLog:
    """The run log without the records of steps that will run again."""
    rewind(job.out / METRICS, step or -1)  # a run that starts over drops even its first measurement
    return RunLog(job.out / METRICS)


def train_steps(
    run: TrainingRun, optimizer: optax.GradientTransformation, shardings: TrainState, hooks: Sequence[Hook]
) -> None:
    """Runs the remaining steps, with the hooks between them."""
    held = rows_of_process(run.job.mesh, run.job.train.global_batch_size, jax.process_index())
    batch = next_batch(run, held)
    step = compiled_step(run, optimizer, shardings, batch)
    for hook in hooks:
        with noted_by(hook, run):
            hook.start(run)
    request = StopRequest()
    with request.listening():
        while not (run.is_last or run.is_stopping):
            with jax.transfer_guard("disallow"):
                run.state, metrics = step(run.state, batch)
            run.step += 1
            run.is_stopping = request.reached(run.step)
            if not run.is_last:
                batch = next_batch(run, held)
            is_needed = any(hook.needs_metrics(run) for hook in hooks)
            run.metrics = {name: float(value) for name, value in jax.device_get(metrics).items()} if is_needed else None
            for hook in hooks:
                with noted_by(hook, run):
                    hook.after_step(run)


def next_batch(run: TrainingRun, held: Sequence[int]) -> dict[str, jax.Array]:
    """The next step's batch, sharded over the mesh; this process has its rows `held`."""
    host = run.job.batches.batch(run.step, run.state.params)
    return shard_batch(host, run.job.mesh, run.job.train.global_batch_size, held)


def compiled_step(
    run: TrainingRun, optimizer: optax.GradientTransformation, shardings: TrainState, batch: dict[str, jax.Array]
) -> CompiledStep:
    """The step as one compiled program: a batch of another shape is an error, not a second program."""
    job, started = run.job, time.perf_counter()
    step = make_train_step(job.objective, optimizer, job.mesh, shardings, job.train.grad_accum, job.model.bias_rate)
    options = compiler_options(job.mesh.devices.flat[0].device_kind)
    compiled = step.lower(run.state, batch).compile(options)
    run.write(compile_s=time.perf_counter() - started)
    return compiled


@contextmanager
def noted_by(hook: Hook, run: TrainingRun) -> Iterator[None]:
    """Adds a note to an exception: the hook that raised it, and after which step."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the hook {type(hook).__name__}, after step {run.step} of {run.job.out}")
        raise


def stats(run: TrainingRun) -> dict[str, Any]:
    """The manifest's stats, read from the log, so that they cover the steps before a kill too."""
    train = run.job.train
    records = [record for record in read_log(run.job.out / METRICS) if "loss" in record]
    rates = sorted(record["tokens_per_s"] for record in records)
    return {
        "steps": train.steps,
        "tokens": train.steps * train.global_batch_size * train.seq_len,
        "loss": records[-1]["loss"],
        "tokens_per_s": rates[len(rates) // 2],
        "params_hash": hash_params(run.state.params),
    }
