"""The last product of a layer of experts, `(activation(gate) * up * row_weight) @ down`, with its gradient.

Written as one function because of what its gradient writes. In the backward pass of Mixtral's layer (v5p, 20,480 rows
of 14,336 hidden dimensions) XLA computes the hidden activations once more and the gradients of gate, up and row weights
in several fusions, and holds six arrays of 0.6 GB at once. On TPUs one kernel reads gate, up and the hidden
activations' gradient block by block and writes the gradients of gate and up and the hidden activations over them.

What must hold: rows behind the last group take part in nothing; on TPUs their results are arbitrary.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.flash_blocks import LANES
from lifecycle.kernels.grouped import group_products, grouped_product
from lifecycle.kernels.linear import Activation, gated

BLOCK_SIZE, MAX_WIDTH = 1 << 18, 1024  # elements: three blocks in and three out, each twice, 6 MB of VMEM in bfloat16


@partial(jax.custom_vjp, nondiff_argnums=(0, 6))
def weighted_down(
    activation: Activation,
    gate: Float[Array, "N F"],
    up: Float[Array, "N F"],
    row_weights: Float[Array, " N"],
    down: Float[Array, "X F D"],
    group_sizes: Int[Array, " X"],
    is_filled: bool = True,
) -> Float[Array, "N D"]:
    """Each row's gated activations, times its weight (float32), through its group's matrix; see `grouped_matmul`."""
    return grouped_product(_hidden(activation, gate, up, row_weights), down, group_sizes, is_filled=is_filled)


def _forward(
    activation: Activation,
    gate: Array,
    up: Array,
    row_weights: Array,
    down: Array,
    group_sizes: Array,
    is_filled: bool,
) -> tuple[Array, tuple[Array, ...]]:
    out = weighted_down(activation, gate, up, row_weights, down, group_sizes, is_filled)
    return out, (gate, up, row_weights, down, group_sizes)


def _backward(
    activation: Activation, is_filled: bool, saved: tuple[Array, ...], grad: Array
) -> tuple[Array | None, ...]:
    gate, up, row_weights, down, group_sizes = saved
    d_hidden = grouped_product(grad, down, group_sizes, transposed=True, is_filled=False)
    num_rows = group_sizes.sum()
    d_gate, d_up, hidden, d_weights = _gradients(activation, gate, up, d_hidden, row_weights, num_rows)
    d_down = group_products(hidden, grad, group_sizes)
    # First what needs the hidden activations, which are as large as a gradient, so that they do not wait for the rest.
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
        return tpu_gradients(activation, gate, up, d_hidden, row_weights, num_rows)
    hidden, pull = jax.vjp(partial(_hidden, activation), gate, up, row_weights)
    d_gate, d_up, d_weights = pull(d_hidden)
    is_row = jnp.arange(gate.shape[0]) < num_rows
    return d_gate, d_up, hidden, jnp.where(is_row, d_weights, 0)


# TPU ------------------------------------------------------------------------------------------------------------------


def tpu_gradients(
    activation: Activation,
    gate: Array,
    up: Array,
    d_hidden: Array,
    row_weights: Array,
    num_rows: Array,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """`_gradients`, written over `gate`, `up` and `d_hidden`; zero are only the row weights' behind `num_rows`."""
    rows, columns = gate.shape
    width = next((size for size in range(MAX_WIDTH, 0, -LANES) if columns % size == 0), columns)
    block = min(rows, BLOCK_SIZE // width // 16 * 16)
    own = pl.BlockSpec((block, width), lambda i, j, _: (i, j))
    of_row = pl.BlockSpec((block, 1), lambda i, j, _: (i, 0))
    d_gate, d_up, hidden, d_weights = pl.pallas_call(
        partial(_kernel, activation),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(rows, block), columns // width),
            in_specs=[own, own, own, of_row],
            out_specs=[own, own, own, of_row],
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(gate.shape, gate.dtype) for _ in range(3)),
            jax.ShapeDtypeStruct((rows, 1), jnp.float32),
        ],
        input_output_aliases={1: 0, 2: 1, 3: 2},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="gated_rows",
        interpret=interpret,
    )(num_rows[None], gate, up, d_hidden, row_weights[:, None])
    return d_gate, d_up, hidden, d_weights[:, 0]


def _kernel(activation: Activation, num_rows, gate, up, d_hidden, row_weights, *outs) -> None:  # refs
    d_gate, d_up, hidden, d_weights = outs
    first = pl.program_id(0) * gate.shape[0]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        d_weights[...] = jnp.zeros_like(d_weights)

    @pl.when(first < num_rows[0])
    def _() -> None:
        own, grad = row_weights[...], d_hidden[...].astype(jnp.float32)
        halves = (gate[...].astype(jnp.float32), up[...].astype(jnp.float32))
        product, pull = jax.vjp(lambda a, b: gated(a, b, activation), *halves)
        of_gate, of_up = pull(grad * own)
        d_gate[...], d_up[...] = of_gate.astype(d_gate.dtype), of_up.astype(d_up.dtype)
        hidden[...] = (product * own).astype(hidden.dtype)
        is_row = first + jax.lax.broadcasted_iota(jnp.int32, own.shape, 0) < num_rows[0]
        d_weights[...] += jnp.where(is_row, (grad * product).sum(axis=1, keepdims=True), 0)
