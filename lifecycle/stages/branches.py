"""Stages that continue another stage's run from one of its checkpoints: `from: pretrain@8000`.

Weights, optimizer state and data come along, and steps go on counting; so do the settings, but for those that the stage
names. So a stage of 10,000 steps in all that decays over the last 2,000 is one that trained at the stable rate for
8,000 steps, and was then continued with a decay: the checkpoint at 8,000 serves any number of decays, and a longer
stable run too (Hu et al. 2024, "MiniCPM", section 4). What must hold: if the schedule alone changes, the weights are,
bit by bit, those of a run with the continuing stage's settings from its first step.

The data may change at the checkpoint: the batch size and, of rows of tokens, their length and mixture; no token is lost
or comes again (`training/token_rows.py`). Stages with 8, 16 and 32 rows a step warm the batch size up (Merrill et al.
2025, "Critical Batch Size Revisited").
"""

import json
from collections.abc import Mapping
from typing import Any

from lifecycle.core.config import ConfigError, nearest, overlaid
from lifecycle.core.config_changes import differing
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import objective_kind

# May differ: what comes after the checkpoint, and what changes no weights (`TrainConfig.HOW`).
FREE = frozenset({"start", "model", "steps", "global_batch_size", "weights"}) | TrainConfig.HOW
OF_TOKENS = frozenset({"seq_len", "mixture"})  # may differ too, where rows are of tokens

WARMUP = "optimizer.schedule.warmup_steps"


def continued_run(start: object, stages: Mapping[str, Any]) -> tuple[str, int] | None:
    """(the stage, the step) that `STAGE@STEP` names; None for any other start."""
    stage, _, step = start.rpartition("@") if isinstance(start, str) else ("", "", "")
    return (stage, int(step)) if stage in stages and step.isdecimal() else None


def with_inherited(tree: Any) -> Any:
    """A run's settings, as read from its file, in which a stage that continues another's run has that one's settings,
    except those that it gives. Raises `ValueError` for a stage without an objective that goes on from none."""
    stages = tree.get("train") if isinstance(tree, Mapping) else None
    if not isinstance(stages, Mapping):
        return tree
    return {**tree, "train": {name: _inherited(name, stages, ()) for name in stages}}


def _inherited(name: str, stages: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    own = stages[name]
    given = own.get("from") if isinstance(own, Mapping) else None
    found = continued_run(given, stages)
    if found is None:
        stage, _, step = given.rpartition("@") if isinstance(given, str) else ("", "", "")
        if stage and "objective" not in own:
            if stage in stages:
                raise ValueError(f"train.{name}.from={given}: {step!r} is no step; give a number, as in {stage}@100")
            if step.isdecimal():
                raise ValueError(f"train.{name}.from={given}: not a training stage{nearest(stage, stages)}")
        return own
    if name in path:
        cycle = " -> ".join([*path[path.index(name) :], name])
        raise ValueError(f"train: {cycle}: these stages wait for each other's weights; change a `from`")
    theirs = _inherited(found[0], stages, (*path, name))
    if not isinstance(theirs, Mapping) or own.get("objective", theirs.get("objective")) != theirs.get("objective"):
        return own
    return overlaid(TrainConfig, theirs, own)


def check_branch(name: str, parent: str, step: int, train: Mapping[str, TrainConfig]) -> None:
    """Raises `ValueError` unless stage `name` can go on from the first `step` steps of stage `parent`'s run."""
    ours, theirs, at = train[name], train[parent], f"train.{name}.from={parent}@{step}"
    if ours.needs_reference:
        raise ValueError(f"{at}: the reference of {ours.objective} is a stage's initial weights; start from {parent}")
    for stage, train_of in ((name, ours), (parent, theirs)):
        if train_of.epochs is not None:
            raise ValueError(f"{at}: a run that goes on knows its steps; give train.{stage}.steps, not epochs")
    if not 0 < step <= theirs.steps:
        raise ValueError(f"{at}: {parent} has {theirs.steps} steps; choose one of its checkpoints")
    before = continued_run(theirs.start, train)
    if before is not None and step <= before[1]:
        raise ValueError(
            f"{at}: {parent} goes on from step {before[1]} of {before[0]}; choose a later checkpoint of it, or "
            f"train.{name}.from={before[0]}@{step}"
        )
    if ours.steps <= step:
        raise ValueError(
            f"{at}: train.{name}.steps={ours.steps} counts from the start of {parent}; set it above {step}"
        )
    _check_settings(at, name, parent, train)
    _check_rates(at, name, parent, step, train)


def _check_settings(at: str, name: str, parent: str, train: Mapping[str, TrainConfig]) -> None:
    ours, fixed = _fixed(train[name]), _fixed(train[parent])
    if different := sorted(key for key, value in ours.items() if value != fixed.get(key)):
        needed = ", ".join(f"{key}={json.dumps(fixed[key])}" if key in fixed else f"no {key}" for key in different)
        of_data = "global_batch_size, seq_len, mixture" if _reads_tokens(train[parent]) else "global_batch_size"
        raise ValueError(
            f"{at}: the run of {parent} goes on with {needed}; leave these out of train.{name}, or give the same. Only "
            f"steps, {of_data}, weights, the schedule after the warm-up, and how it is computed, measured and saved "
            f"may differ. To start anew from its weights: from={parent}"
        )


def _check_rates(at: str, name: str, parent: str, step: int, train: Mapping[str, TrainConfig]) -> None:
    stages = {stage: (train[stage].optimizer.schedule, train[stage].steps) for stage in (parent, name)}
    ours, theirs = (s.model_copy(update={"steps": s.length(steps)}) for s, steps in stages.values())
    if ours == theirs:
        return
    for stage, (schedule, steps) in stages.items():
        if (stable := schedule.stable_steps(steps)) < step:
            raise ValueError(
                f"{at}: the learning rate of {stage} is stable for its first {stable} steps only; choose an earlier "
                f"checkpoint or a smaller train.{stage}.optimizer.schedule.decay_share, or give both stages one "
                "schedule: optimizer.schedule.steps is its length"
            )


def changes(name: str, train: Mapping[str, TrainConfig]) -> dict[str, Any]:
    """What a stage that continues another's run changes at which step, for its manifest; empty for other stages.

    `goes_on` has the stage, the step, and the settings by dotted name: before, and from then on.
    """
    found = continued_run(train[name].start, train)
    if found is None:
        return {}
    ours, theirs = train[name], train[found[0]]
    omitted = frozenset({"start", "model"}) | ours.HOW
    return {"goes_on": {"stage": found[0], "step": found[1], "settings": differing(theirs, ours, omitted)}}


def require_kept(name: str, parent: str, step: int, train: Mapping[str, TrainConfig]) -> None:
    """Raises `ConfigError` unless stage `parent`, which is still to run, keeps its checkpoint of `step` to its end."""
    from lifecycle.training.checkpoints.retention import kept_steps  # imports JAX

    theirs, at = train[parent], f"train.{name}.from={parent}@{step}"
    settings, steps = theirs.checkpoint, theirs.steps
    saved = {saved_at: {} for saved_at in (*range(settings.every, steps + 1, settings.every), steps)}
    if step not in saved:
        raise ConfigError(
            f"{at}: {parent} saves no checkpoint of this step; choose a multiple of train.{parent}.checkpoint.every="
            f"{settings.every}, or set that so that {step} is one"
        )
    if step not in kept_steps(saved, settings):
        raise ConfigError(
            f"{at}: {parent} will have deleted this checkpoint when it has trained to step {steps}; set "
            f"train.{parent}.checkpoint.keep_every={step}, or another divisor of {step} that is a multiple of "
            f"checkpoint.every={settings.every}"
        )


def _reads_tokens(train: TrainConfig) -> bool:
    """Whether all rows of a stage are of tokens, whose length and mixture may change."""
    return objective_kind(train.objective).rows == "tokens"


def _fixed(train: TrainConfig) -> dict[str, object]:
    """The settings that must stay: those that decide the steps before a checkpoint, but for data and schedule."""
    free = FREE | (OF_TOKENS if _reads_tokens(train) else frozenset())
    settings = {key: value for key, value in train.plain().items() if key not in free}
    optimizer = dict(settings.pop("optimizer"))
    schedule = optimizer.pop("schedule")
    if train.modules_weight:  # may become another one: what is trained stays
        settings["mtp_weight"] = "above 0"
    return settings | {f"optimizer.{k}": v for k, v in optimizer.items()} | {WARMUP: schedule["warmup_steps"]}
