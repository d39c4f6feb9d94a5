"""The train step as a program, from shapes alone: for the compiler of devices that need not be here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.typing import Batch
from lifecycle.model.config import ModelConfig
from lifecycle.training.config import LanguageConfig, TrainConfig
from lifecycle.training.objectives.language import next_token
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.placement import BY_POSITION, batch_sharding
from lifecycle.training.step import abstract_state, make_train_step, state_shardings


def lower_train_step(model: ModelConfig, train: LanguageConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Pre-training's whole step, gradients and optimizer, lowered for the devices of `mesh`."""
    optimizer = build_optimizer(train.optimizer, train.steps)
    shardings = state_shardings(model, optimizer, mesh)
    objective = partial(next_token, model, remat=train.remat, loss_chunks=train.loss_chunks)
    step = make_train_step(objective, optimizer, mesh, shardings, train.grad_accum, model.bias_rate)
    return step.lower(abstract_state(model, optimizer, shardings), abstract_batch(train, mesh))


def abstract_batch(train: TrainConfig, mesh: Mesh) -> Batch:
    """The shapes of a batch of token rows, laid over `mesh`."""
    shape = (train.global_batch_size, train.seq_len)

    def array(name: str) -> Any:
        dtype = jnp.float32 if name == "loss_mask" else jnp.int32
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, name))

    return {name: array(name) for name in BY_POSITION}
