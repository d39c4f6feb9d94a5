"""Stages of kind `train`: train an objective on its rows, from the stage's initial weights."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lifecycle.core import startup
from lifecycle.core.machine import matmul_peak
from lifecycle.core.platform import kind_of
from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.likelihood import LikelihoodTask
from lifecycle.model.counts import num_adapter_params, num_params
from lifecycle.model.params import compute_dtype, logical_axes, with_reference
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.planning.chips import chip_of_device
from lifecycle.stages import keys
from lifecycle.stages.adapters import start_with_adapter
from lifecycle.stages.branches import changes
from lifecycle.stages.config import RunConfig
from lifecycle.stages.drafters import with_drafter
from lifecycle.stages.learner import Asked, Learner
from lifecycle.stages.learning_rows import read_learning_rows, require_sources
from lifecycle.stages.origins import named_models
from lifecycle.stages.sessions import RecordSession, finished_sessions
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.stages.weights import named_model, start_weights, weights_hash, with_score
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.interface import Tokenizer
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.config import TrainConfig
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.profile import Profile
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job


def run(
    config: RunConfig, inputs: Inputs, out: Path, progress: Progress, name: str, to: Destination | None = None
) -> Outcome:
    """Trains the stage `name`; the artifact's content hash is that of the weights, not of the checkpoint files. On
    hosts that share no folder, checkpoints go `to` a store."""
    train, mesh = config.train[name], build_mesh(config.mesh)
    model = train.with_copy(config.trained_model(name))
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    if "tokens" in inputs:
        require_sources(config.train.values(), TokenShards(inputs["tokens"].path))
    start, start_hash = start_weights(config, name, inputs, tokenizer, mesh)
    if model.has_score and isinstance(start, dict):
        start = with_score(model, start, config.seed, mesh)
    if train.adapter is not None:
        progress.note(f"adapter: {num_adapter_params(model):,} of {num_params(model):,} parameters are trained")
        start = start_with_adapter(config, name, start, mesh) if isinstance(start, dict) else start
    if model.reference is not None and isinstance(start, dict):
        start = jax.jit(partial(with_reference, model), out_shardings=tree_shardings(mesh, logical_axes(model)))(start)
    seeds = {kind: config.seed + order for kind, order in keys.row_order(config, name).items()}
    as_used = {"precision": None} | ({"mtp_weight": 0.0} if train.modules_weight else {})
    measured = train.model_copy(update=as_used)
    found = named_models(train, config.train)
    loaded = partial(named_model, config, name, inputs=inputs, tokenizer=tokenizer, mesh=mesh)
    asked_before = {*train.others} - {*train.held}
    named = {field: loaded(field) for field in found if field not in asked_before}
    asked = {field: Asked(weights_hash(found[field], inputs), partial(loaded, field)) for field in asked_before}
    learner = Learner(train, model, mesh, measured, tokenizer, start, start_hash, seeds, config.rows, named, asked)
    learned = read_learning_rows(learner, inputs, out, progress)
    train = train.resolved(learned.epoch_rows)
    if model.drafter is not None and isinstance(start, dict):
        assert learned.rows is not None
        start = with_drafter(model, start, learned.rows, config.seed, mesh)
    batches = learned.batches_on(mesh, train.global_batch_size)
    facts = {
        "parameters": num_params(model),
        **({} if train.adapter is None else {"adapter_parameters": num_adapter_params(model)}),
        "train_flops_per_token": train.flops_per_token(model) + config.held_flops(name),
        "compute_dtype": compute_dtype(model),
        **matmul_rate(mesh, compute_dtype(model)),
    }
    task_hooks, rows = measured_tasks(config, name, inputs, tokenizer, mesh, progress)
    facts_now = facts | rows | job_facts(config, name, train, mesh)
    objective, spent = learner.objective(train), startup.taken("data")
    job = TrainJob(
        model, train, mesh, objective, batches, start, out, spent, facts_now, learner.held, to, owns_start=True
    )
    hooks = [RecordSession(config.mesh, train, model), *learned.hooks, *task_hooks]
    if config.profile is not None:
        hooks.append(Profile(*config.profile_steps))
    stats = run_job(job, progress, hooks)
    sessions = finished_sessions(out, train.steps)
    facts |= changes(name, config.train)
    return Outcome(stats | learned.facts | facts | rows, content_hash=stats["params_hash"], how=sessions)


def measured_tasks(
    config: RunConfig, name: str, inputs: Inputs, tokenizer: Tokenizer, mesh: Mesh, progress: Progress
) -> tuple[list[Hook], dict[str, Any]]:
    """The measurement of the stage's tasks, and how many of their rows it covers."""
    settings, model = config.train[name].tasks, config.train[name].with_copy(config.trained_model(name))
    if settings is None:
        return [], {}
    from lifecycle.evals.measurement import TaskMeasurement, read_measured  # scipy.stats takes a second to import

    tasks = [task for task in config.measured_tasks(name) if isinstance(task, LikelihoodTask)]
    folders = {stage: artifact.path for stage, artifact in inputs.items()}
    encoder = TextEncoder(tokenizer, ChatTemplate.load(folders["tokenizer"], tokenizer).dated)
    found = read_measured(tasks, settings.limit, folders, encoder, model.max_seq_len, progress)
    measurement = TaskMeasurement(found, model, mesh, tokenizer.vocab_size)
    hook = Evaluate(settings.every or config.train[name].eval_every, measurement.measure, measurement.prepare)
    return [hook], {"measured_tasks": {task.task.name: task.rows for task in found}}


def matmul_rate(mesh: Mesh, dtype: str) -> dict[str, Any]:
    """One device's peak in products of this dtype: the published one of a known chip, with the chip's name; else as
    measured here. Chips are published in bfloat16."""
    chip = chip_of_device(kind_of(mesh.devices.flat[0].device_kind))
    if chip is None or dtype != "bfloat16":
        return {"matmul_peak_flops": matmul_peak(dtype)}
    return {"matmul_peak_flops": chip.bf16_flops, "peak_chip": chip.name}


def job_facts(config: RunConfig, name: str, train: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """What a reader of the stage's time sheet needs to know while the stage runs, when it has no manifest yet; `train`
    are its settings with their steps."""
    price, key = config.price, keys.training(config, name)
    measured = {name: value for name, value in train.plain().items() if name in train.HOW_MEASURED}
    device = mesh.devices.flat[0]
    hour = price.core_hour if device.platform == "cpu" else price.device_hour
    return {
        "objective": train.objective,
        "steps": train.steps,
        "tokens_per_step": train.global_batch_size * train.seq_len,
        "devices": mesh.devices.size,
        "device_kind": device.device_kind,
        "platform": device.platform,
        "currency": price.currency,
        "price_hour": hour,  # of a CPU's core or of a device; None: unknown
        "settings": {**key, "train": key["train"] | measured, "mesh": config.mesh.plain()},
    }
