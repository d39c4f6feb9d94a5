"""Optimizers and learning-rate schedules.

`muon` trains the layers' matrices with Muon (`training/muon.py`) and everything else with Adam.
"""

from functools import partial
from typing import Any

import jax
import optax

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import parameters
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.training.config import OptimizerConfig
from lifecycle.training.muon import scale_by_muon


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up, then stable and linear decay (Hu et al. 2024, "MiniCPM", section 4), a cosine
    (Loshchilov and Hutter 2017), or constant."""
    schedule, peak = config.schedule, config.learning_rate
    warmup = min(schedule.warmup_steps, steps)
    if schedule.kind == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, steps - warmup), schedule.final_share)
    elif schedule.kind == "constant":
        main = optax.constant_schedule(peak)
    else:
        decay = min(max(1, round(schedule.decay_share * steps)), max(1, steps - warmup))  # ends with the run
        start = max(0, steps - warmup - decay)
        main = optax.linear_schedule(peak, peak * schedule.final_share, decay, transition_begin=start)
    # the first step already moves: a rate of exactly zero would waste a batch
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, main], [warmup])


def build_optimizer(
    config: OptimizerConfig, model: ModelConfig, steps: int, mesh: AnyMesh
) -> optax.GradientTransformation:
    """The transformation from mean gradients to updates, both sharded over `mesh` like the model's parameters (or a
    subset of them). Weight decay is decoupled and skips vectors."""
    declared = dict(jax.tree_util.tree_leaves_with_path(parameters(model)))

    def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
        return declared[path].is_matrix

    def rule_of(path: tuple[Any, ...], _: Any) -> str:
        return "muon" if declared[path].is_matrix and declared[path].is_stacked else "adam"

    adam = optax.scale_by_adam(config.beta1, config.beta2, eps=1e-10)
    rule = adam
    if config.name == "muon":
        muon = scale_by_muon(config.momentum, parameters(model), mesh)
        rule = optax.partition({"muon": muon, "adam": adam}, partial(jax.tree_util.tree_map_with_path, rule_of))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        rule,
        optax.add_decayed_weights(config.weight_decay, mask=partial(jax.tree_util.tree_map_with_path, is_matrix)),
        optax.scale_by_learning_rate(build_schedule(config, steps)),
    )
