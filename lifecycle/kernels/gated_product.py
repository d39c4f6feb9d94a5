"""The last product of a layer of experts, `(activation(gate) * up * row_weight) @ down`, with its gradient.

It is one function because of its gradient. In the backward pass of Mixtral's layer (v5p, 20,480 rows of 14,336 hidden
dimensions) XLA recomputes the hidden activations and computes the gradients of gate, up and row weights in several
fusions, with six arrays of 0.6 GB at once. On TPUs one kernel, `gated_rows`, overwrites its inputs.

What must hold: rows after the last group are ignored; on TPUs their results are arbitrary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.activation import Activation, gated
from lifecycle.kernels.grouped_linear import GroupWeights, products_of


@partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def weighted_down(
    activation: Activation,
    gate: Float[Array, "N F"],
    up: Float[Array, "N F"],
    row_weights: Float[Array, " N"],
    down: GroupWeights,
    group_sizes: Int[Array, " X"],
    is_filled: bool = True,
) -> Float[Array, "N D"]:
    """Each row's gated activations, times its weight (float32), through its group's matrix; see `grouped_matmul`."""
    return products_of(down).forward(_hidden(activation, gate, up, row_weights), down, group_sizes, is_filled)


def _forward(
    activation: Activation,
    gate: Array,
    up: Array,
    row_weights: Array,
    down: Any,
    group_sizes: Array,
    is_filled: bool,
) -> tuple[Array, tuple[Any, ...]]:
    out = weighted_down(activation, gate, up, row_weights, down, group_sizes, is_filled)
    return out, (gate, up, row_weights, down, group_sizes)


def _backward(activation: Activation, is_filled: bool, saved: tuple[Any, ...], grad: Array) -> tuple[Any, ...]:
    gate, up, row_weights, down, group_sizes = saved
    d_hidden = products_of(down).rows_gradient(grad, down, group_sizes, False)
    num_rows = group_sizes.sum()
    d_gate, d_up, hidden, d_weights = _gradients(activation, gate, up, d_hidden, row_weights, num_rows)
    d_down = products_of(down).weights_gradient(hidden, grad, down, group_sizes)
    # The product with the hidden activations comes first, which frees them: they are as large as a gradient.
    d_gate, d_up, d_down = jax.lax.optimization_barrier((d_gate, d_up, d_down))
    return d_gate, d_up, d_weights, d_down, None


weighted_down.defvjp(_forward, _backward)


def _hidden(activation: Activation, gate: Array, up: Array, row_weights: Array) -> Array:
    return (gated(gate, up, activation).astype(jnp.float32) * row_weights[:, None]).astype(gate.dtype)


def _gradients(
    activation: Activation, gate: Array, up: Array, d_hidden: Array, row_weights: Array, num_rows: Array
) -> tuple[Array, Array, Array, Array]:
    """The gradients of gate and up, the hidden activations, and the gradient of the row weights."""
    if platform() == "tpu":
        from lifecycle.kernels.gated_rows import tpu_gradients

        return tpu_gradients(activation, gate, up, d_hidden, row_weights, num_rows)
    hidden, pull = jax.vjp(partial(_hidden, activation), gate, up, row_weights)
    d_gate, d_up, d_weights = pull(d_hidden)
    is_row = jnp.arange(gate.shape[0]) < num_rows
    return d_gate, d_up, hidden, jnp.where(is_row, d_weights, 0)
