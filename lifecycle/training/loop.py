"""The training loop, the same for every objective: restore, step, hooks.

What must hold: with the same seed and mesh the final weights are bit-equal, through any number of kills and restarts. A
step makes no implicit transfer between host and device (a transfer guard enforces it), and metrics are fetched only if
a hook needs them, so that the device does not wait for Python.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import optax

from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import METRICS, RunLog, read_log
from lifecycle.core.stopping import Stopped, StopRequest
from lifecycle.core.timesheet import WENT_BACK
from lifecycle.model.stacks import REFERENCE
from lifecycle.parallel.placement import rows_of_process, shard_batch
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.weights import hash_params
from lifecycle.training.faults import IN_ROW, SIGNALS, fault_shardings
from lifecycle.training.hooks.faults import Faults, GoBack, diverged
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.log import Log
from lifecycle.training.hooks.remark import Tell
from lifecycle.training.hooks.replay import Replay
from lifecycle.training.hooks.save import Save
from lifecycle.training.hooks.save_local import SaveLocal
from lifecycle.training.hooks.times import RecordTimes
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.optimizer import build_optimizer, build_schedule
from lifecycle.training.passing import PassingBatches
from lifecycle.training.reference_copy import following
from lifecycle.training.restart import (
    Saved,
    earlier_records,
    open_local,
    open_log,
    passed_again,
    release_start,
    restore_or_start,
)
from lifecycle.training.run import NUM_TOKENS, Clock, TrainingRun
from lifecycle.training.served import served_by
from lifecycle.training.state import TrainState, state_shardings
from lifecycle.training.step import COUNTS, make_train_step, of_own_rows
from lifecycle.training.watchdog import Watchdog

type CompiledStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def run_job(job: TrainJob, progress: Progress, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains to the last step and returns the stage's stats; resumes from the newest intact checkpoint in `job.out`.

    `hooks` run after a step is logged and before it is saved. Raises `Stopped` after SIGTERM, once the step is saved.
    """
    began = time.perf_counter()
    with ExitStack() as opened:
        durable = opened.enter_context(closing(durable_checkpoints(job, progress)))
        is_local = job.train.checkpoint.local is not None
        local = opened.enter_context(open_local(job, durable, progress)) if is_local else None
        saved, batches = Saved(durable, local), opened.enter_context(closing(PassingBatches(job.batches)))
        job = replace(job, batches=batches, spent_s={**job.spent_s, "restore": time.perf_counter() - began})
        save = Save(durable)
        hooks = (*hooks, Tell(job))  # after those that log
        saving = (*([SaveLocal(local)] if local is not None else []), save)
        went_back = earlier_records(job)
        while True:
            try:
                return train_from_checkpoint(job, progress, hooks, saved, saving, went_back)
            except GoBack as fault:
                save.settle(fault.step, progress, is_waiting=True)
                went_back = go_back(job, fault, saved, batches, progress, went_back)
                job = replace(job, spent_s={})


def durable_checkpoints(job: TrainJob, progress: Progress) -> Checkpointer:
    """The job's checkpoints that outlive its hosts."""
    return Checkpointer(job.out / CHECKPOINTS, job.train.checkpoint, progress, job.to)


def train_from_checkpoint(
    job: TrainJob,
    progress: Progress,
    hooks: Sequence[Hook],
    saved: Saved,
    saving: Sequence[Hook],
    went_back: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Trains from the newest checkpoint to the last step and returns the stats. `saving`: the hooks that save, which
    know for how long that has failed; `went_back`: the records of the times that the run went back. Raises `GoBack`
    for a step that it must go back from, and `Stopped`."""
    train, clock = job.train, Clock(job.spent_s)
    watchdog = Watchdog(clock, job.out, train.faults.hang_s)
    optimizer = build_optimizer(train.optimizer, job.model, train.steps, job.mesh)
    shardings = state_shardings(job.model, optimizer, job.mesh, train.frozen(job.model))
    with ExitStack() as opened:
        sheet = opened.enter_context(RecordTimes(job, clock, saved.durable.latest_step() or 0).session())
        opened.enter_context(watchdog.watching())
        with clock.paused("restore"):
            state, step, num_tokens = restore_or_start(job, optimizer, shardings, saved)
            release_start(job)
            again = passed_again(job, step, went_back)
        if train.faults.is_guarded:
            shardings = replace(shardings, faults=fault_shardings(job.mesh))
        log = opened.enter_context(open_log(job, step, again)) if is_writer() else None
        run = TrainingRun(job, progress, log, state, step, num_tokens, clock=clock)
        opened.callback(run.times.close)
        if not run.is_last:
            watching = (
                Faults(),
                *replays(job, shardings),
                Log(train.log_every, build_schedule(train.optimizer, train.steps)),
            )
            train_steps(run, optimizer, shardings, watchdog, (*watching, *hooks, *saving, sheet))
        if run.is_stopping:
            raise Stopped(f"stopped after step {run.step} of {train.steps}, which is saved")
        with clock.paused("end"):
            if saved.local is not None:
                saved.local.delete()
            return stats(run)


def replays(job: TrainJob, shardings: TrainState) -> Iterator[Replay]:
    """The hook that compares replicas, if the stage asks for it."""
    if job.train.faults.replay_every is not None:
        local = partial(of_own_rows, job.objective, grad_accum=job.train.grad_accum)
        yield Replay(job.train.faults.replay_every, local, job.mesh, shardings, job.objective.held)


def go_back(
    job: TrainJob,
    fault: GoBack,
    saved: Saved,
    batches: PassingBatches,
    progress: Progress,
    before: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Makes the run go on from the newest checkpoint that was due, behind the batch of the faulty step. The records of
    the times that it went back, one for each checkpoint; `before` are those so far.

    A checkpoint that was saved by time, or when the job was stopped, is not one that an undisturbed run has, so it does
    not count. What is decided is in the log before any checkpoint is deleted.
    """
    to = max(job.first_step, from_writer(saved.durable.last_due(fault.step)))
    times = sum(record["times"] for record in before if record["step"] == to + 1)
    if times >= job.train.faults.limit:
        raise diverged(job, fault.step, f"{fault.what}, after going back to step {to} {times} times (faults.limit)")
    last = batches.number(fault.step - 1)
    first = batches.pass_over(to, last)
    progress.note(f"{fault}; going back to step {to}, passing over batches {first} to {last}")
    record = {"step": to + 1, "fault": fault.what, "action": WENT_BACK, "from_step": fault.step}
    record |= {"passed_over": [first, last], "times": times + 1}
    if is_writer():
        with RunLog(job.out / METRICS) as log:
            log.write(**record)
    saved.drop_after(to)
    if to == 0:  # of which there is no checkpoint to restore
        batches.begin()
    return [*(record for record in before if record["step"] <= to), record]


def train_steps(
    run: TrainingRun,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    watchdog: Watchdog,
    hooks: Sequence[Hook],
) -> None:
    """Runs the remaining steps, with the hooks between them."""
    held = rows_of_process(run.job.mesh, run.job.train.global_batch_size, jax.process_index())
    request = StopRequest()
    signals: list[dict[str, jax.Array]] = []  # of the steps since metrics were fetched, on the devices
    with request.listening():
        with run.clock.paused("data"):
            run.batch = next_batch(run, held)
        with run.clock.paused("compile"):
            step = compiled_step(run, optimizer, shardings, run.batch)
        for hook in hooks:
            with noted_by(hook, run):
                hook.start(run)
        while not (run.is_last or run.is_stopping):
            dispatched = time.perf_counter()
            with jax.transfer_guard("disallow"):
                run.state, metrics = step(run.state, run.batch)
            run.times.dispatched(dispatched, metrics["loss"])
            run.step += 1
            watchdog.launched(metrics)
            run.is_stopping = request.reached(run.step)
            if not run.is_last:
                began = time.perf_counter()
                run.batch = next_batch(run, held)
                run.times.fetched(began, time.perf_counter(), run.job.batches.spent(run.step))
            signals.append({name: metrics[name] for name in (*SIGNALS, IN_ROW, NUM_TOKENS) if name in metrics})
            run.metrics = None
            if any(hook.needs_metrics(run) for hook in hooks):
                fetch(run, metrics, signals)
                watchdog.measured()
                signals = []
            for hook in hooks:
                with noted_by(hook, run):
                    hook.after_step(run)
        run.is_stopping |= request.came_late  # the last step's measurements may take minutes


def fetch(run: TrainingRun, metrics: dict[str, jax.Array], signals: Sequence[dict[str, jax.Array]]) -> None:
    """Brings the last step's metrics to the host, and the signals of all steps since they were fetched before, whose
    tokens are counted. A metric of which the step had nothing, such as answers with that label, is left out."""
    found, values = jax.tree.map(float, jax.device_get((metrics, list(signals))))
    run.fetched = list(zip(range(run.step - len(values) + 1, run.step + 1), values, strict=True))
    run.num_tokens += sum(
        int(each[NUM_TOKENS]) for step, each in run.fetched if run.job.train.is_new_batch(run.batch_of(step))
    )
    found[NUM_TOKENS] = run.num_tokens
    run.metrics = {
        name: value for name, value in found.items() if not name.startswith(COUNTS) and found.get(COUNTS + name, 1)
    }


def next_batch(run: TrainingRun, held: Sequence[int]) -> dict[str, jax.Array]:
    """The next step's batch, sharded over the mesh; this process has its rows `held`."""
    host = run.job.batches.batch(run.step, run.state.params)
    return shard_batch(host, run.job.mesh, run.job.train.global_batch_size, held)


def compiled_step(
    run: TrainingRun, optimizer: optax.GradientTransformation, shardings: TrainState, batch: dict[str, jax.Array]
) -> CompiledStep:
    """The step as one compiled program: a batch of another shape is an error, not a second program."""
    job, started = run.job, time.perf_counter()
    settings = job.train.grad_accum, job.model.bias_rate, job.train.faults
    served = served_by(job.model, job.train, job.mesh)
    step = make_train_step(job.objective, optimizer, job.mesh, shardings, *settings, served, following(job.train))
    options = compiler_options(job.mesh.devices.flat[0].device_kind)
    compiled = step.lower(run.state, batch, job.held).compile(options)
    run.write(compile_s=time.perf_counter() - started)
    return lambda state, batch: compiled(state, batch, job.held)


@contextmanager
def noted_by(hook: Hook, run: TrainingRun) -> Generator[None]:
    """Adds a note to an exception: the hook that raised it, and after which step."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the hook {type(hook).__name__}, after step {run.step} of {run.job.out}")
        raise


def stats(run: TrainingRun) -> dict[str, Any]:
    """The manifest's stats, read from the log, so that they cover the steps before a kill too; in other processes than
    the writing one only the hash of the weights."""
    weights = hash_params({name: part for name, part in run.state.weights.items() if name != REFERENCE})
    if not is_writer():  # the log may be on another disk
        return {"params_hash": weights}
    train, log = run.job.train, list(read_log(run.job.out / METRICS))
    records = [record for record in log if "loss" in record]
    if not records:
        raise diverged(run.job, run.step, "all steps that were looked at were faulty")
    rates = sorted(record["tokens_per_s"] for record in records)
    return {
        "steps": train.steps,
        "tokens": (train.steps - run.job.first_step) * train.global_batch_size * train.seq_len,
        "loss": records[-1]["loss"],
        "tokens_per_s": rates[len(rates) // 2],
        "faults": [record for record in log if "fault" in record],
        "params_hash": weights,
    }
