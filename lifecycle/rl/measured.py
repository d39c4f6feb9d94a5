"""What the trainer knows of a batch's tokens: log-probabilities by older and by the initial weights, and values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.mesh import spec
from lifecycle.parallel.placement import in_plain_order, on_mesh, shard_batch
from lifecycle.rl.batches import Columns, needed_columns
from lifecycle.rl.config import RolloutConfig
from lifecycle.training.batches import HostBatch
from lifecycle.training.objectives.objective import token_likelihoods
from lifecycle.training.objectives.policy import OLD, REFERENCE
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

    def local(is_value: bool, params: Params, batch: Batch) -> Array:
        tokens, _ = token_likelihoods(model, params, batch, settings)
        return tokens.scores() if is_value else tokens.statistics(settings.temperature).logprobs

    specs = param_specs(model), spec("loss_rows", "seq")
    jitted = {of: jax.jit(on_mesh(partial(local, of), mesh, *specs)) for of in (False, True)}

    def measured(is_value: bool, params: Any, batch: HostBatch) -> np.ndarray:
        rows = shard_batch({name: batch[name] for name in TOKENS}, mesh)
        values = in_plain_order(jax.device_get(jitted[is_value](params, rows)), mesh.shape["context"])
        return values * batch["loss_mask"]

    return measured
