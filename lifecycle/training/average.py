"""An exponential moving average of the weights, kept with the optimizer's state and sharded like the parameters.

Training goes on with the weights themselves. The average is what the run is for: it is measured during training and
read by the stages after it (`training/checkpoints/weights.py`). A run that goes on from a checkpoint gets both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lifecycle.core.typing import Array, PyTree
from lifecycle.model.params import Params

AVERAGE = "average"  # its entry in the optimizer's state


class AverageState(NamedTuple):
    """The number of steps so far, and the average, a tree like that of the parameters."""

    steps: Array
    weights: Params


def with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """`optimizer`, and an average of the weights after each of its steps.

    Early steps decay faster, by `(1 + step) / (10 + step)`, so that the initial weights are soon forgotten
    (TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """

    def init(params: optax.Params) -> AverageState:
        # a copy: a step donates its state, in which no array may be twice
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[Any, AverageState]:
        assert params is not None
        kept = jnp.minimum(decay, (1 + state.steps) / (10 + state.steps))
        after = optax.apply_updates(params, updates)
        weights = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.weights, after)
        return updates, AverageState(state.steps + 1, weights)

    return optax.named_chain(("optimizer", optimizer), (AVERAGE, optax.GradientTransformation(init, update)))


def average_of(opt_state: PyTree) -> Params | None:
    """The average in an optimizer's state; None if it keeps none."""
    return opt_state[AVERAGE].weights if isinstance(opt_state, dict) and AVERAGE in opt_state else None
