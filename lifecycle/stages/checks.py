"""Checks of a run's stages and tasks against its model, mesh and data, when its file is read.

Each raises `ValueError` with the setting, named by `at` or the task, and the fix.
"""

import json
from collections.abc import Mapping, Sequence

from lifecycle.core.config import ConfigError, nearest
from lifecycle.data.topic_names import divided
from lifecycle.evals.config import WinRatesConfig
from lifecycle.evals.likelihood import LikelihoodTask
from lifecycle.evals.tasks import TaskConfig
from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig, require_cuts_rows, require_divides
from lifecycle.stages.names import DOCUMENTS
from lifecycle.stages.origins import Start, named_models
from lifecycle.training.adapter import PREVIOUS
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.drafting import EagleConfig
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.metric_names import TASK_METRIC, is_of_task
from lifecycle.training.mixture import rows_per_period
from lifecycle.training.mixture_setting import TEMPERATURE, exponent_of, named_in
from lifecycle.training.preference import RewardModelConfig

MOST_INT8_SUMMANDS = (2**31 - 1) // 127**2  # of a sum of products that int32 holds, whatever the values


def check_sizes(at: str, train: TrainConfig, model: ModelConfig, mesh: MeshConfig) -> None:
    """Checks that a training stage's sizes fit its model and the mesh."""
    rows = train.global_batch_size // train.grad_accum
    require_divides(mesh, "loss_rows", rows, f"{at}.global_batch_size / {at}.grad_accum")
    if model.vocab_size % (train.loss_chunks * mesh.tensor):
        raise ValueError(
            f"{at}.loss_chunks={train.loss_chunks} and mesh.tensor={mesh.tensor} do not divide "
            f"model.vocab_size={model.vocab_size}"
        )
    if train.optimizer.base_width is not None and model.mla is not None:
        raise ValueError(
            f"{at}.optimizer.base_width: no rule is known here for the latents of model.mla; leave it out and "
            f"choose {at}.optimizer.learning_rate for this width"
        )
    if train.modules_weight and not model.num_mtp_modules:
        raise ValueError(
            f"{at}.mtp_weight={train.modules_weight:g} is the weight of the prediction modules' loss, and the model "
            "has none; set model.num_mtp_modules=1, or leave it out"
        )
    if train.modules_weight and train.seq_len <= model.num_mtp_modules:
        raise ValueError(
            f"{at}.seq_len={train.seq_len}: the last of model.num_mtp_modules={model.num_mtp_modules} predicts nothing "
            "in such a short row; raise the one or lower the other"
        )
    if model.drafter is not None:
        check_drafter(at, train, model, mesh)
    if train.adapter is not None:
        train.adapter.check_model(f"{at}.adapter", model, mesh)
    if train.samples:
        check_sampling(at, mesh)
    require_cuts_rows(mesh, train.seq_len, f"{at}.seq_len")
    if train.faults.replay_every is not None and mesh.replica == 1:
        raise ValueError(
            f"{at}.faults.replay_every compares replicas, and mesh.replica=1; set mesh.replica=2, or leave it out"
        )
    names = model.remat_names(mesh)
    if unknown := set(train.remat or {}) - set(names):
        raise ValueError(
            f"{at}.remat: this model has no {', '.join(sorted(unknown))} on this mesh; it has {', '.join(names)}"
        )
    check_precision(at, train, model, mesh)
    if train.seq_len > model.max_seq_len:
        raise ValueError(f"{at}.seq_len={train.seq_len} is above model.max_seq_len={model.max_seq_len}; raise that")


def check_drafter(at: str, train: TrainConfig, model: ModelConfig, mesh: MeshConfig) -> None:
    """Checks that a drafter can be trained for this model on this mesh."""
    assert isinstance(train, EagleConfig) and model.drafter is not None
    if model.num_layers < 3:
        raise ValueError(f"{at}: a drafter reads three layers of its model, and model.num_layers={model.num_layers}")
    if model.mla is not None:
        raise ValueError(f"{at}: a drafter has no model.mla; train prediction modules (model.num_mtp_modules) instead")
    if train.draft_vocab is not None and train.draft_vocab > model.vocab_size:
        raise ValueError(
            f"{at}.draft_vocab={train.draft_vocab} is above model.vocab_size={model.vocab_size}; leave it out to draft "
            "all tokens"
        )
    for axis in ("stage", "context"):
        if getattr(mesh, axis) > 1:
            raise ValueError(f"{at}: a drafter is trained without mesh.{axis}; give its devices to mesh.fsdp")
    if train.seq_len <= train.draft_steps:
        raise ValueError(f"{at}.draft_steps={train.draft_steps}: rows of seq_len={train.seq_len} are too short")


def check_sampling(at: str, mesh: MeshConfig) -> None:
    """Checks that completions can be sampled on the mesh that the stage trains on."""
    for axis in ("stage", "context"):
        if getattr(mesh, axis) > 1:
            raise ValueError(
                f"{at}: completions are sampled on the stage's mesh, without mesh.{axis}; give its devices to mesh.fsdp"
            )


def check_reward(name: str, train: Mapping[str, TrainConfig]) -> None:
    """Checks that a stage whose score is to be a reward learns one."""
    reward = named_models(train[name], train).get("reward")
    if reward is None:
        return
    if reward.stage is None:
        raise ValueError(
            f"train.{name}.reward={reward.bundle}: no training stage; name one with objective=reward_model"
        )
    if not isinstance(train[reward.stage], RewardModelConfig):
        raise ValueError(
            f"train.{name}.reward={reward.stage}: {train[reward.stage].objective} learns no reward; name a stage with "
            "objective=reward_model"
        )


def check_teacher(name: str, train: Mapping[str, TrainConfig], start: Start) -> None:
    """Checks that a stage learns from another model than the one that it starts from, and that this predicts tokens."""
    teacher = named_models(train[name], train).get("teacher")
    if teacher is None:
        return
    if teacher == start:
        raise ValueError(
            f"train.{name}.teacher={train[name].start or start.stage}: the stage starts from these weights itself, so "
            "there is nothing to learn; name another stage or bundle, or start from another"
        )
    if teacher.stage is not None and isinstance(train[teacher.stage], RewardModelConfig):
        raise ValueError(
            f"train.{name}.teacher={teacher.stage}: a reward model predicts no tokens; name another stage, or a bundle"
        )


def check_held(at: str, train: TrainConfig, model: ModelConfig, other: ModelConfig, mesh: MeshConfig) -> None:
    """Checks that the `other` model fits the stage that runs it beside its own; `at` is the setting."""
    shared = train.shared_ids if isinstance(train, DistillationConfig) else None
    least = min(other.vocab_size, model.vocab_size)
    if shared is None and other.vocab_size != model.vocab_size:
        raise ConfigError(
            f"{at}: it has model.vocab_size={other.vocab_size}, the stage's model {model.vocab_size}; set "
            f"shared_ids={least}, or lower, to compare the first ids alone"
        )
    if shared is not None and shared > least:
        raise ConfigError(f"{at}: shared_ids={shared} is above model.vocab_size={least}; lower it, or leave it out")
    top_k = train.loss_top_k if isinstance(train, DistillationConfig) else None
    if top_k is not None and top_k > (shared or least):
        raise ConfigError(f"{at}: loss_top_k={top_k} is above the {shared or least} ids that are compared; lower it")
    if train.seq_len > other.max_seq_len:
        raise ConfigError(f"{at}: seq_len={train.seq_len} is above its max_seq_len={other.max_seq_len}; lower that")
    try:
        other.check_mesh(mesh)
    except ValueError as error:
        raise ConfigError(f"{at}: {error}") from None


def check_adapter(name: str, train: Mapping[str, TrainConfig], start: Start) -> None:
    """Checks that a stage's adapter has weights to be beside and, where it goes on, an adapter to go on with."""
    adapter = train[name].adapter
    if adapter is None or start.step is not None:
        return
    if start.is_fresh:
        raise ValueError(
            f"train.{name}.adapter: an adapter is trained beside finished weights; set train.{name}.from to a stage or "
            "to a bundle's folder"
        )
    if adapter.start != PREVIOUS:
        return
    before = None if start.stage is None else train[start.stage].adapter
    if before is None:
        raise ValueError(
            f"train.{name}.adapter.from={PREVIOUS}: {start.stage or start.bundle} has trained no adapter; set it to "
            f"fresh, or to an adapter's folder"
        )
    fields = [field for field in AdapterConfig.model_fields if getattr(adapter, field) != getattr(before, field)]
    if fields:
        raise ValueError(
            f"train.{name}.adapter.from={PREVIOUS}: the adapter of {start.stage} has other values of "
            f"{', '.join(fields)}; give the same, or set it to fresh"
        )


def check_target_format(name: str, train: TrainConfig, origin: str, before: TrainConfig) -> None:
    """Checks that a stage that trains a drafter for the model of stage `origin` sees its weights as they are served."""
    if train.weights != before.weights:
        raise ValueError(
            f"train.{name}.weights={json.dumps(train.weights)}: the drafter's model comes from {origin}, which has "
            f"train.{origin}.weights={json.dumps(before.weights)}, and is served as that says; give both the same"
        )


def check_precision(at: str, train: TrainConfig, model: ModelConfig, mesh: MeshConfig) -> None:
    """Checks that a stage's `precision` holds the sums of its products."""
    tokens = train.global_batch_size // train.grad_accum * train.seq_len * mesh.tensor // mesh.size
    tokens *= mesh.expert if model.moe is not None else 1  # at most: all devices' tokens may go to one expert
    if train.precision == "int8" and tokens > MOST_INT8_SUMMANDS:
        raise ValueError(
            f"{at}.precision=int8: a weight's gradient is a sum over up to {tokens:,} tokens of a micro-batch on one "
            f"device, and int32 holds one of {MOST_INT8_SUMMANDS:,} products of int8 values; raise grad_accum"
        )


def check_mixture(at: str, train: TrainConfig, sources: Sequence[str], sorted_by_topic: Sequence[str]) -> None:
    """Checks that a stage's mixture names sources of the run, or topics of those that are sorted by topic, and that no
    source has the name of another meaning."""
    if not isinstance(train, NextTokenConfig) or not train.mixture:
        return
    if exponent_of(train.mixture) is not None and TEMPERATURE in sources:
        raise ValueError(f"{at}.mixture: a source is named {TEMPERATURE!r}, which means another thing here; rename it")
    named = named_in(train.mixture)
    wholes = ("", *sorted_by_topic) if sorted_by_topic else ()
    topics = {name for name in named if (parts := divided(name)) is not None and parts[0] in wholes}
    if unknown := next((name for name in named if name not in sources and name not in topics), None):
        hint = "" if divided(unknown) is None else ", or no data.topics sorts it by topic"
        raise ValueError(f"{at}.mixture: no source {unknown!r} in data.sources{hint}{nearest(unknown, sources)}")
    if named:
        assert not isinstance(train.mixture, str)
        rows_per_period(train.mixture)


def check_reading(at: str, train: TrainConfig, kind: str) -> None:
    """Checks that a stage's rows can be read as its settings say."""
    if kind == "tokens" and train.truncation != "drop":
        raise ValueError(f"{at}.truncation={train.truncation}: token rows are cut from documents anyway; leave it out")
    if train.epochs is not None and isinstance(train, NextTokenConfig) and train.mixture:
        raise ValueError(f"{at}.epochs: in a mixture each source goes through epochs of its own; give {at}.steps")


def check_task(task: TaskConfig, documents: Sequence[str], has_docstrings: bool) -> None:
    """Checks that the stage that a task's rows come from makes them."""
    stage, at = rows_stage(task), f"task {task.name!r}: rows {task.rows}"
    if stage not in (None, DOCUMENTS, *documents, "rows"):
        one = f", @{documents[0]}/FILE" if documents and documents[0] != DOCUMENTS else ""
        raise ValueError(f"{at}: expected @{DOCUMENTS}/FILE{one} or @rows/FILE")
    if stage == DOCUMENTS and not documents:
        raise ValueError(f"{at}: this run has no data section")
    if stage == "rows" and not has_docstrings:
        raise ValueError(f"{at}: evaluation rows are made from docstrings; set rows.docstrings=true")


def check_win_rates(settings: WinRatesConfig, train: Mapping[str, TrainConfig], readers: Sequence[str]) -> None:
    """Checks that the stages whose answers are compared are the run's and answer, and that it has such rows."""
    for name in settings.stages:
        if name not in train:
            raise ValueError(f"evaluate.win_rates.pairs: no training stage {name!r}{nearest(name, train)}")
        if isinstance(train[name], RewardModelConfig):
            raise ValueError(f"evaluate.win_rates.pairs: {name} is a reward model, which answers nothing")
    if not readers:
        raise ValueError(
            f"evaluate.win_rates.rows={settings.rows}: no training stage reads such rows, so none are held out; "
            "choose another kind"
        )


def check_measured(at: str, train: TrainConfig, tasks: Sequence[TaskConfig]) -> None:
    """Checks that the tasks that a stage measures are tasks of the run, scored by likelihood, and that a checkpoint's
    best metric is one of theirs."""
    known = {task.name: task for task in tasks}
    names = () if train.tasks is None else train.tasks.names
    for name in names:
        if name not in known:
            raise ValueError(f"{at}.tasks.names: no task {name!r} in evaluate.tasks{nearest(name, known)}")
        if not isinstance(known[name], LikelihoodTask):
            raise ValueError(
                f"{at}.tasks.names: task {name!r} is of kind {known[name].kind}, which generates text; training "
                "measures kinds scored by likelihood: leave this one to the evaluation"
            )
    if train.checkpoint.best is not None and is_of_task(train.checkpoint.best):
        _check_best(f"{at}.checkpoint", train.checkpoint, {name: known[name] for name in names})


def _check_best(at: str, checkpoint: CheckpointConfig, measured: Mapping[str, TaskConfig]) -> None:
    """Checks that `best` is a metric of a measured task, and that `best_is` is the better end of it."""
    metrics = {
        f"{name}{TASK_METRIC}{metric}": is_higher
        for name, task in measured.items()
        if isinstance(task, LikelihoodTask)
        for metric, is_higher in task.metrics.items()
    }
    if checkpoint.best not in metrics:
        there = ", ".join(metrics) or "none: name tasks in tasks.names"
        raise ValueError(f"{at}.best={checkpoint.best}: not measured on a task of this stage; what is: {there}")
    better = "highest" if metrics[checkpoint.best] else "lowest"
    if checkpoint.best_is != better:
        raise ValueError(f"{at}.best={checkpoint.best} is best when it is {better}; set {at}.best_is={better}")


def rows_stage(task: TaskConfig) -> str | None:
    """The stage whose artifact has a task's rows (`@STAGE/FILE`); None for the user's own files."""
    return task.rows[1:].partition("/")[0] if task.rows.startswith("@") else None
