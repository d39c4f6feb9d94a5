"""A reference that learns: a copy of the weights in the training state, which moves towards the policy (TR-DPO).

After every `ref_model_sync_steps` steps the copy becomes `alpha * policy + (1 - alpha) * copy` (Gorbatovski et al.
2024, "Learn Your Reference Model for Real Good Alignment", equations 3 and 4; TRL's `SyncRefModelCallback`). What must
hold: the copy moves towards the weights that the step ends with, so an update that is left out moves nothing towards
itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Int
from lifecycle.model.params import Params
from lifecycle.model.stacks import REFERENCE
from lifecycle.training.config import TrainConfig
from lifecycle.training.freeze import merged
from lifecycle.training.preference import DpoConfig

type Follow = Callable[[Params, Params, Int[Array, ""]], Params]  # (trained, frozen, finished steps) -> frozen


def stays(trained: Params, frozen: Params, step: Int[Array, ""]) -> Params:
    """The frozen parameters as they are."""
    return frozen


def following(train: TrainConfig) -> Follow:
    """How the copy among the frozen parameters of a stage's state moves."""
    if not isinstance(train, DpoConfig) or train.ref_model_sync_steps is None:
        return stays
    alpha, every = train.ref_model_mixup_alpha, train.ref_model_sync_steps

    def follow(trained: Params, frozen: Params, step: Int[Array, ""]) -> Params:
        def mixed(copy: Params) -> Params:
            policy = merged(trained, frozen)
            return jax.tree.map(mix, copy, {name: policy[name] for name in copy})

        def mix(old: Any, new: Any) -> Array:
            return (1 - alpha) * old + alpha * new.astype(jnp.float32)

        return frozen | {REFERENCE: jax.lax.cond(step % every == 0, mixed, lambda copy: copy, frozen[REFERENCE])}

    return follow
