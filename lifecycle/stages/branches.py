"""Stages that continue another stage's run from one of its checkpoints: `from: pretrain@8000`.

Weights, optimizer state and data order come along, and steps go on counting. So a stage of 10,000 steps in all that
decays over the last 2,000 is one that trained at the stable rate for 8,000 steps, and was then continued with a decay:
the checkpoint at 8,000 serves any number of decays, and a longer stable run too (Hu et al. 2024, "MiniCPM", section 4).
What must hold: the weights are, bit by bit, those of a run with the continuing stage's settings from its first step.

Only the batch size may change at the checkpoint: the next row is the next one still. Stages with 8, 16 and 32 rows a
step warm the batch size up (Merrill et al. 2025, "Critical Batch Size Revisited").
"""

import json
from collections.abc import Mapping

from lifecycle.core.config import ConfigError
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import objective_kind

# May differ: what comes after the checkpoint, and what changes no weights.
FREE = frozenset({"start", "model", "steps", "global_batch_size", "eval_every", "eval_bytes"})

WARMUP = "optimizer.schedule.warmup_steps"


def check_branch(name: str, parent: str, step: int, train: Mapping[str, TrainConfig]) -> None:
    """Raises `ValueError` unless stage `name` could have taken the first `step` steps of stage `parent` itself."""
    ours, theirs, at = train[name], train[parent], f"train.{name}.from={parent}@{step}"
    if objective_kind(ours.objective).needs_reference:
        raise ValueError(f"{at}: the reference of {ours.objective} is a stage's initial weights; start from {parent}")
    if not 0 < step <= theirs.steps:
        raise ValueError(f"{at}: {parent} has {theirs.steps} steps; choose one of its checkpoints")
    if ours.steps <= step:
        raise ValueError(
            f"{at}: train.{name}.steps={ours.steps} counts from the start of {parent}; set it above {step}"
        )
    fixed = _fixed(theirs)
    if different := sorted(key for key, value in _fixed(ours).items() if value != fixed.get(key)):
        needed = ", ".join(f"{key}={json.dumps(fixed[key])}" if key in fixed else f"no {key}" for key in different)
        raise ValueError(
            f"{at}: the run of {parent} goes on with {needed}; give train.{name} the same. Only steps, "
            "global_batch_size, schedule.kind, decay_share and final_share may differ. To start anew from its weights: "
            f"from={parent}"
        )
    for stage, config in ((parent, theirs), (name, ours)):
        stable = config.optimizer.schedule.stable_steps(config.steps)
        if stable < step:
            raise ValueError(
                f"{at}: the learning rate of {stage} is stable for its first {stable} steps only; choose an earlier "
                f"checkpoint or a smaller train.{stage}.optimizer.schedule.decay_share"
            )


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


def _fixed(train: TrainConfig) -> dict[str, object]:
    """The settings that decide the steps before a checkpoint in the stable phase."""
    free = FREE | train.HOW_COMPUTED | train.HOW_RECORDED
    settings = {key: value for key, value in train.plain().items() if key not in free}
    optimizer = dict(settings.pop("optimizer"))
    schedule = optimizer.pop("schedule")
    return settings | {f"optimizer.{k}": v for k, v in optimizer.items()} | {WARMUP: schedule["warmup_steps"]}
