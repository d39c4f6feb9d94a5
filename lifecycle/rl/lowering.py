"""What a stage that learns from rewards runs and holds, from shapes alone: rows of rollouts, what the trainer measures
of them, the sampler, and the arrays that lie beside the training state."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.typing import PyTree
from lifecycle.inference.chunks import BUCKETS
from lifecycle.inference.lowering import AbstractEngine
from lifecycle.inference.state import num_groups
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_params, logical_axes, without_adapter
from lifecycle.parallel.mesh import AnyMesh, tree_shardings
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.measured import measuring, seen
from lifecycle.rl.packed import needed_columns, packed, with_rewards
from lifecycle.rl.sampling import Prompt, Rollout, SamplingSettings
from lifecycle.training.config import TrainConfig
from lifecycle.training.lowering import abstract_batch
from lifecycle.training.objectives.policy import REFERENCE
from lifecycle.training.objectives.ppo import VALUES
from lifecycle.training.packing import Row


def example_row(settings: RolloutConfig) -> Row:
    """A row of the stage's batches, made as they are made, of completions of one token."""
    num = settings.prompts_per_step * settings.group_size
    batch = packed([Rollout(Prompt(0, [0], ""), [0], [0.0], "", is_cut=False, kept=[[0]])] * num, settings)
    batch |= {name: np.zeros(batch["tokens"].shape, np.float32) for name in needed_columns(settings)}
    batch, _ = with_rewards(batch, np.zeros(num), settings)
    return {name: column[0] for name, column in batch.items()}


def trace_measuring(
    model: ModelConfig, settings: RolloutConfig, mesh: Mesh, params: Params, is_value: bool
) -> jax.stages.Traced:
    """The program that measures a step's rollouts by abstract `params`, traced; call `.lower()` on the result."""
    batch = abstract_batch(settings, mesh, example_row(settings))
    return measuring(model, settings, mesh, is_value).trace(params, seen(batch))


def measured_of(settings: RolloutConfig) -> tuple[bool, ...]:
    """Whether values are measured (True), log-probabilities (False), or both, before a batch's first step."""
    return tuple(sorted({name == VALUES for name in needed_columns(settings)}))


def abstract_sampler(
    model: ModelConfig, settings: SamplingSettings, mesh: AnyMesh, num_kept: int | None = None
) -> AbstractEngine:
    """The engine that samples the stage's completions; `num_kept` as in `generate`."""
    groups, longest = num_groups(mesh), settings.max_prompt_tokens + settings.max_completion_tokens
    slots = -(-settings.num_slots // groups) * groups
    beneath = model.trunk.model_copy(update={"adapter": None})
    return AbstractEngine(beneath, slots, min(longest, model.max_seq_len), mesh, num_kept=num_kept)


def runs_per_step(settings: RolloutConfig, num_slots: int, mesh: AnyMesh) -> dict[str, float]:
    """How often each kind of program runs for a train step, if every prompt and completion is as long as may be."""
    num = settings.prompts_per_step * settings.group_size
    piece = settings.max_completion_tokens if settings.partial is None else settings.partial.tokens
    sampling = sampling_runs(settings, num, num_slots, mesh, piece, settings.group_size)
    return {kind: runs / settings.num_iterations for kind, runs in {"scoring": 1.0, **sampling}.items()}


def sampling_runs(
    settings: SamplingSettings, num: int, num_slots: int, mesh: AnyMesh, piece: int | None = None, group_size: int = 1
) -> dict[str, float]:
    """How often the engine's programs run for `num` completions that are as long as may be, `group_size` of each
    prompt, in pieces of so many tokens. Of each further piece the tokens before it are prefilled; the prompt itself
    once for its completions, and again for those of them that get slots later: a copy of its pages counts nothing."""
    groups = num_groups(mesh)
    begins = range(0, settings.max_completion_tokens, piece or settings.max_completion_tokens)
    own, slots = -(-num // groups), max(num_slots // groups, 1)  # completions and slots of a group
    first = min(own, -(-own // group_size) + -(-own // slots) - 1)
    chunks = sum((own if at else first) * -(-(settings.max_prompt_tokens + at) // BUCKETS[-1]) for at in begins)
    tokens = -(-num // num_slots) * settings.max_completion_tokens
    return {"prefill": float(chunks), "decode": float(tokens)}


def kept_arrays(
    model: ModelConfig, settings: RolloutConfig, mesh: AnyMesh, reward: ModelConfig | None
) -> Mapping[str, PyTree]:
    """Abstract arrays that stay on the devices beside the training state: the reference that the divergence is taken
    from, and the stage `reward`'s model."""
    kept: dict[str, PyTree] = {}
    if REFERENCE in needed_columns(settings):
        kept["reference"] = _placed(model, mesh, abstract_params(model))
    if reward is not None:
        kept["reward model"] = _placed(reward, mesh, abstract_params(reward))
    return kept


def handed_arrays(model: ModelConfig, settings: TrainConfig, mesh: AnyMesh) -> Mapping[str, PyTree]:
    """Abstract arrays from which the sampler takes its weights, if these are not the training state's: with an adapter
    added, or rounded for serving."""
    if model.adapter is None and settings.weights is None:
        return {}
    beneath = model.model_copy(update={"adapter": None})
    whole = jax.eval_shape(partial(without_adapter, model), abstract_params(model))
    return {"weights handed to the sampler": _placed(beneath, mesh, whole)}


def _placed(model: ModelConfig, mesh: AnyMesh, shapes: Any) -> PyTree:
    places = tree_shardings(mesh, logical_axes(model))
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, places)
