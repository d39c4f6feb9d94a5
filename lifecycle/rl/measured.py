"""What the trainer knows of a batch's tokens: log-probabilities by older and by the initial weights, and values."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import compiler_options
from lifecycle.core.typing import Array, Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import in_plain_order, on_mesh, shard_batch
from lifecycle.rl.batches import Columns
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.packed import needed_columns
from lifecycle.training.batches import HostBatch
from lifecycle.training.micro_batches import of_filled
from lifecycle.training.objectives.objective import token_likelihoods
from lifecycle.training.objectives.policy import KEPT, OLD, REFERENCE, policy_logprobs
from lifecycle.training.objectives.ppo import VALUES
from lifecycle.training.served import served_by
from lifecycle.training.state import param_specs

TOKENS = ("tokens", "targets", "positions", "segment_ids", "loss_mask")


def measured_columns(model: ModelConfig, settings: RolloutConfig, mesh: Mesh, start: Any) -> Columns:
    """The columns that the settings need. `start`: the stage's initial weights, of which a copy is kept on the mesh if
    the divergence from them counts."""
    needed = needed_columns(settings)
    measured = _measured(model, settings, mesh)
    served = served_by(model, settings, mesh)
    reference = served(jax.tree.map(jnp.copy, start)) if REFERENCE in needed else None

    def columns(params: Params, batch: HostBatch) -> dict[str, np.ndarray]:
        own = served(params) if {OLD, VALUES} & set(needed) else None
        weights = {OLD: own, REFERENCE: reference, VALUES: own}
        return {name: measured(name == VALUES, weights[name], batch) for name in needed}

    return columns


def _measured(model: ModelConfig, settings: RolloutConfig, mesh: Mesh) -> Callable[[bool, Any, HostBatch], np.ndarray]:
    """A function of whether values are wanted instead of log-probabilities, weights and a batch."""
    programs = {of: measuring(model, settings, mesh, of) for of in (False, True)}

    def measured(is_value: bool, params: Any, batch: HostBatch) -> np.ndarray:
        rows = shard_batch(seen(batch), mesh)
        values = in_plain_order(jax.device_get(programs[is_value](params, rows)), mesh.shape["context"])
        return values * batch["loss_mask"]

    return measured


def seen[A](batch: Mapping[str, A]) -> dict[str, A]:
    """The columns of a batch that measuring reads."""
    return {name: batch[name] for name in (*TOKENS, KEPT) if name in batch}


def measuring(model: ModelConfig, settings: RolloutConfig, mesh: Mesh, is_value: bool) -> jax.stages.Wrapped:
    """The program from parameters and a batch's columns `seen` to `[B, T]` on every device: log-probabilities, or
    values."""

    def local(params: Params, batch: Batch) -> Array:
        def of_part(part: Batch) -> Array:
            tokens, _ = token_likelihoods(model, params, part, settings)
            return tokens.scores() if is_value else policy_logprobs(settings, tokens)

        return of_filled(of_part, batch, settings.grad_accum, mesh)

    options = compiler_options(mesh.devices.flat[0].device_kind)  # the step's kernels, of as many rows or more
    values = on_mesh(local, mesh, param_specs(model), spec("loss_rows", "seq"))
    return jax.jit(values, out_shardings=NamedSharding(mesh, P()), compiler_options=options)
