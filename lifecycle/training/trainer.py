"""A train step with your own objective and batches, for notebooks and scripts; stages of a run use the loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.training.batches import HostBatch
from lifecycle.training.objectives.objective import Context, Objective
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.training.rounding import holding
from lifecycle.training.state import init_state, state_from_params, state_shardings
from lifecycle.training.step import make_train_step


class Trainer:
    """A training state and its step, sharded over `mesh` (default: one device).

    `objective`: an `Objective`, or a function `(params, batch) -> Sums`; on a mesh it runs on each device's shard of
    both. Weights start from `params`, or fresh from `seed`. `steps` is the length of the learning-rate schedule.
    Parameters named by `freeze` stay as they are: `("mtp",)` for prediction modules that the objective does not train.
    `held`: the parameters of other models that the objective holds, on the mesh.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: Objective | Callable[[Params, Batch], Sums],
        steps: int,
        optimizer: OptimizerConfig | None = None,
        mesh: Mesh | None = None,
        params: Params | None = None,
        seed: int = 0,
        grad_accum: int = 1,
        freeze: tuple[str, ...] = (),
        held: Params | None = None,
    ) -> None:
        self.mesh = mesh or build_mesh(MeshConfig())
        optimizer = optimizer or OptimizerConfig()
        update = build_optimizer(optimizer, model, steps, self.mesh)
        shardings = state_shardings(model, update, self.mesh, freeze)
        if not isinstance(objective, Objective):
            objective = Objective(partial(_without_context, objective))
        self.held: Params = held or {}
        self._step = make_train_step(objective, update, self.mesh, shardings, grad_accum, model.bias_rate)
        hold = holding(optimizer, model)
        if params is None:
            self.state = init_state(model, update, shardings, jax.random.key(seed), optimizer.base_width, hold)
        else:
            self.state = state_from_params(params, update, shardings, hold)

    @property
    def params(self) -> Params:
        """The weights now; the next step donates them."""
        return self.state.params

    def step(self, batch: HostBatch) -> dict[str, Any]:
        """One update by a global batch of NumPy arrays `[B, T]`: `tokens, targets, positions, segment_ids, loss_mask`.

        Returns the metrics as scalars on the device: reading one waits for the step.
        """
        self.state, metrics = self._step(self.state, shard_batch(batch, self.mesh), self.held)
        return metrics


def _without_context(function: Callable[[Params, Batch], Sums], params: Params, batch: Batch, context: Context) -> Sums:
    return function(params, batch)
