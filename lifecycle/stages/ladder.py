"""A ladder: small copies of a run's model, trained on the run's data, from which `planning/loss_law.py` predicts it.

A rung is a training stage of the run's own folder. So the ladder prepares no data again, resumes after a kill, and a
rung that is trained already is not trained twice. A rung's model has the target's shape at another depth: its widths
are in proportion, its heads have the target's size. Batch and learning rate follow the laws of `training/dial.py` from
the target's own values, and each depth is trained for several budgets, because along one budget per parameter the
law's two terms could not be told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import RULES
from lifecycle.stages.checks import rows_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.run_settings import ExportConfig
from lifecycle.text.config import RowsConfig
from lifecycle.training.dial import batch_tokens, counted_params, learning_rate, training_flops
from lifecycle.training.likelihood import NextTokenConfig

FEWEST_DEPTHS = 4  # the law is fitted without the deepest, too
SHARES = (0.25, 0.5, 1.0)  # of the target's tokens per parameter
FRACTIONS = (1 / 6, 1 / 4, 1 / 3, 1 / 2)  # of the target's depth
LOGS = 20  # records of a rung's log


@dataclass(frozen=True)
class Rung:
    """A stage of the ladder, or the target: its model and its training."""

    stage: str
    share: float
    model: ModelConfig
    train: NextTokenConfig

    @property
    def params(self) -> int:
        """N of the loss law."""
        return counted_params(self.model)

    @property
    def tokens(self) -> int:
        """D of the loss law."""
        return self.train.steps * self.train.global_batch_size * self.train.seq_len

    @property
    def flops(self) -> float:
        """The model's own FLOPs of its training."""
        return self.train.flops_per_token(self.model) * self.tokens


def target_of(config: RunConfig) -> Rung:
    """The first stage that learns to predict tokens from fresh weights; raises `ConfigError` if there is none."""
    for name in config.training_stages:
        train = config.train[name]
        if isinstance(train, NextTokenConfig) and config.starts[name].is_fresh:
            if train.epochs is not None:
                raise ConfigError(f"train.{name}.epochs: a loss law is of steps; give train.{name}.steps instead")
            return Rung(name, 1.0, config.model_of(name), train)
    raise ConfigError("no stage learns next_token from fresh weights, and only such a stage has a loss law")


def depths_below(num_layers: int) -> tuple[int, ...]:
    """The depths of a ladder for a model of this many layers: a sixth of it to a half. Raises `ConfigError` if it is
    too shallow for `FEWEST_DEPTHS`."""
    depths = sorted({max(1, round(share * num_layers)) for share in FRACTIONS})
    if len(depths) < FEWEST_DEPTHS:
        depths = list(range(1, FEWEST_DEPTHS + 1))
    if depths[-1] >= num_layers:
        raise ConfigError(
            f"a model of {num_layers} layers has no ladder of {FEWEST_DEPTHS} depths below it; train it as it is, or "
            "set model.depth to 5 or more"
        )
    return tuple(depths)


def ladder(config: RunConfig, depths: Sequence[int]) -> tuple[RunConfig, tuple[Rung, ...]]:
    """The run of the rungs, in the run's own folder, and the rungs, the deepest and longest last. Raises `ConfigError`
    for depths that are no ladder below the target."""
    target = target_of(config)
    if len(set(depths)) < FEWEST_DEPTHS or min(depths) < 1 or max(depths) >= target.model.num_layers:
        raise ConfigError(
            f"depths={list(depths)}: give {FEWEST_DEPTHS} or more different depths from 1 to "
            f"{target.model.num_layers - 1}, below train.{target.stage}'s model"
        )
    models = {depth: smaller(target.model, depth) for depth in sorted(set(depths))}
    shards = math.prod(getattr(config.mesh, axis) for axis in RULES["loss_rows"])
    rungs = tuple(
        Rung(
            f"depth-{depth}-{round(100 * share)}", share, model, shorter(target, model, f"depth-{depth}", share, shards)
        )
        for depth, model in models.items()
        for share in SHARES
    )
    return run_of_rungs(config, rungs), rungs


def smaller(model: ModelConfig, depth: int) -> ModelConfig:
    """The model with `depth` layers, and its widths in proportion, of whole heads."""
    share = depth / model.num_layers
    width = max(1, round(model.d_model * share / model.head_dim)) * model.head_dim
    share = width / model.d_model
    heads = max(1, round(model.num_heads * share))
    keys = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, round(model.num_kv_heads * share)))
    sizes: dict[str, Any] = {
        "num_layers": depth, "d_model": width, "num_heads": heads, "num_kv_heads": heads if model.mla else keys,
        "d_ff": _even(model.d_ff * share),
    }  # fmt: skip
    if (moe := model.moe) is not None:
        dense = min(moe.first_dense_layers, depth - 1)
        sizes["moe"] = moe.plain() | {"d_ff": _even(moe.d_ff * share), "first_dense_layers": dense}
    return ModelConfig.model_validate(model.plain() | sizes)


def shorter(target: Rung, model: ModelConfig, name: str, share: float, shards: int) -> NextTokenConfig:
    """The target's training for a smaller model and this share of its tokens per parameter."""
    own = target.train
    tokens = share * target.tokens / target.params * counted_params(model)
    flops = training_flops(model, own.seq_len, tokens)
    whole = training_flops(target.model, own.seq_len, target.tokens)
    best = own.global_batch_size * batch_tokens(flops) / batch_tokens(whole)
    micro = own.global_batch_size // own.grad_accum
    unit = micro if best >= micro else min(shards, micro)
    rows = max(1, round(best / unit)) * unit
    steps = max(1, math.ceil(tokens / (rows * own.seq_len)))
    rate = own.optimizer.learning_rate
    if own.optimizer.base_width is None:  # with one it transfers
        rate *= learning_rate(flops) / learning_rate(whole) * (rows / best) ** 0.5
    warmup = min(round(own.optimizer.schedule.warmup_steps * steps / own.steps), steps - 1)
    schedule = own.optimizer.schedule.model_copy(update={"warmup_steps": warmup, "steps": None})
    optimizer = own.optimizer.model_copy(update={"learning_rate": float(f"{rate:.3g}"), "schedule": schedule})
    changes: dict[str, Any] = {
        "start": "fresh", "model": name, "steps": steps, "global_batch_size": rows, "grad_accum": max(1, rows // micro),
        "optimizer": optimizer, "eval_every": steps, "log_every": max(1, steps // LOGS),
        # it is measured at its end alone, and not on tasks
        "tasks": None,
        "checkpoint": own.checkpoint.model_copy(update={"best": None}),
    }  # fmt: skip
    return own.model_copy(update=changes)


def _even(width: float) -> int:
    return max(1, math.ceil(width / 8)) * 8


def run_of_rungs(config: RunConfig, rungs: Sequence[Rung]) -> RunConfig:
    """The run's config with the rungs as its training stages; its data stages have the run's own keys."""
    uses_rows = any(rows_stage(task) == "rows" for task in config.tasks)
    kept = {name: getattr(config, name) for name in RunConfig.model_fields}
    evaluate = None if config.evaluate is None else config.evaluate.model_copy(update={"after": ()})
    return RunConfig.model_validate(
        kept
        | {
            "given_model": {rung.train.model: rung.model for rung in rungs},
            "train": {rung.stage: rung.train for rung in rungs},
            "rows": RowsConfig(docstrings=config.rows.docstrings and uses_rows),
            "evaluate": evaluate,
            "export": ExportConfig(),
        }
    )
