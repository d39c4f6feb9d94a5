"""Optimizers and learning-rate schedules.

`muon` trains the layers' matrices with Muon (`training/muon.py`) and everything else with Adam; `adafactor` trains all
parameters with a fraction of Adam's memory (`training/adafactor.py`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import optax

from lifecycle.core.typing import Array
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, parameters
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.training.adafactor import scale_by_adafactor
from lifecycle.training.average import with_average
from lifecycle.training.muon import scale_by_muon
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.training.patterns import matched_paths
from lifecycle.training.transfer import scale_by_width
from lifecycle.weights.names import KeyPath


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up, then stable and linear decay (Hu et al. 2024, "MiniCPM", section 4), a cosine
    (Loshchilov and Hutter 2017), or constant."""
    schedule, peak = config.schedule, config.learning_rate
    steps = schedule.length(steps)
    warmup = min(schedule.warmup_steps, steps)
    if schedule.kind == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, steps - warmup), schedule.final_share)
    elif schedule.kind == "constant":
        main = optax.constant_schedule(peak)
    else:
        start = schedule.decay_start(steps)
        decay = max(1, steps - start)
        main = optax.linear_schedule(peak, peak * schedule.final_share, decay, transition_begin=start - warmup)
    # the first step already moves: a rate of exactly zero would waste a batch
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, main], [warmup])


def build_optimizer(
    config: OptimizerConfig, model: ModelConfig, steps: int, mesh: AnyMesh
) -> optax.GradientTransformation:
    """The transformation from mean gradients to updates, both sharded over `mesh` like the model's parameters (or a
    subset of them). Weight decay is decoupled and skips vectors."""
    declared = dict(jax.tree_util.tree_leaves_with_path(parameters(model)))

    def is_matrix(path: KeyPath, _: Any) -> bool:
        return declared[path].is_matrix

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _direction(config, parameters(model), mesh),
        *scale_by_width(config, model),
        optax.add_decayed_weights(config.weight_decay, mask=partial(jax.tree_util.tree_map_with_path, is_matrix)),
        *([_scale_by_parameter(model, config.rates)] if config.rates else []),
        optax.scale_by_learning_rate(build_schedule(config, steps)),
    )
    return with_average(optimizer, config.average_decay) if config.average_decay else optimizer


def _direction(config: OptimizerConfig, declared: Params, mesh: AnyMesh) -> optax.GradientTransformation:
    """The optimizer's rule: from gradients to updates of about Adam's size."""
    if config.name == "adafactor":
        return scale_by_adafactor(declared)
    adam = optax.scale_by_adam(config.beta1, config.beta2, eps=1e-10)
    if config.name == "adamw":
        return adam
    leaves = dict(jax.tree_util.tree_leaves_with_path(declared))

    def rule_of(path: KeyPath, _: Any) -> str:
        return "muon" if leaves[path].is_matrix and leaves[path].is_stacked else "adam"

    muon = scale_by_muon(config.momentum, declared, mesh, config.neuron_beta2)
    return optax.partition({"muon": muon, "adam": adam}, partial(jax.tree_util.tree_map_with_path, rule_of))


def _scale_by_parameter(model: ModelConfig, rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its own rate: that of the last pattern which matches it, or 1."""
    matched = matched_paths(model, rates, "optimizer.rates")

    def scaled(path: KeyPath, update: Array) -> Array:
        return update * rates[matched[path][-1]] if matched[path] else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))
