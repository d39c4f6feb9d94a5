"""`gated(gate, up) @ down` in int8 on a v6e, with its gradient: one function, as the activations between are large.

XLA writes the gated activations for the product, and in the backward pass reads gate and up twice, for their gradients
and to round the activations again. Here the product's kernel makes the activations of a block of rows while it rounds
them, and `quantised_gates` makes the three arrays of the backward pass in one pass over its inputs.

What must hold: gate and up are all that is kept, with the largest magnitude of each row of the activations.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Shaped
from lifecycle.kernels.activation import GATES, Activation, gated_with_gradients
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.quantised import ROW_MAXIMUM, QuantisedWeight, received
from lifecycle.kernels.quantised_linears import gradients
from lifecycle.kernels.quantised_product import ROWS, TOP, rows_blocks, rows_product, scale_of, to_int8

BLOCK_ROWS, MAX_WIDTH = 128, 1024  # three blocks in, three out, double-buffered: 3 MB of VMEM


def has_blocks(rows: int, depth: int, columns: int) -> bool:
    """Whether the product's blocks fit the VMEM with gate and up, too; of sizes that have blocks at all."""
    return rows_blocks(rows, depth, columns, operands=2) is not None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated_product(
    activation: Activation, gate: Float[Array, "N F"], up: Float[Array, "N F"], down: QuantisedWeight
) -> Float[Array, "N D"]:
    """`gated(gate, up, activation) @ down`, of 8-bit values; in `gate`'s dtype. Its sizes must have blocks."""
    return _forward(activation, gate, up, down)[0]


def _forward(activation: Activation, gate: Array, up: Array, down: QuantisedWeight) -> tuple[Array, tuple[Any, ...]]:
    out, most = rows_product(
        gate, down.values, across=down.scale, up=up, activation=activation, is_turned=down.is_cut_by_column
    )
    # named here: of a named array that the forward pass uses, too, JAX makes a copy by `reduce_precision`, 2.9 M cycles
    gate, up = (checkpoint_name(half, name) for half, name in zip((gate, up), GATES, strict=True))
    return out, (gate, up, checkpoint_name(most, ROW_MAXIMUM), replace(down, summed=None))


def _backward(activation: Activation, saved: tuple[Any, ...], grad: Array) -> tuple[Array, Array, QuantisedWeight]:
    gate, up, most, down = saved
    d_hidden, by_hidden = gradients(grad, down)
    d_gate, d_up, values = gates(activation, gate, up, d_hidden, most)
    return d_gate, d_up, received(down, by_hidden(values, scale_of(most)))


gated_product.defvjp(_forward, _backward)


def gates(
    activation: Activation,
    gate: Float[Array, "N F"],
    up: Float[Array, "N F"],
    d_hidden: Float[Array, "N F"],
    most: Float[Array, " N"],
    interpret: bool = False,
) -> tuple[Float[Array, "N F"], Float[Array, "N F"], Shaped[Array, "N F"]]:
    """The gradients of gate and up, and the gated activations in int8, `most` being the largest magnitude of each row.
    `interpret` runs the kernel's Python on a CPU."""
    rows, columns = gate.shape
    width = next(size for size in range(MAX_WIDTH, 0, -LANES) if columns % size == 0)
    block = next(size for size in (BLOCK_ROWS, ROWS) if rows % size == 0)
    own = pl.BlockSpec((block, width), lambda i, j: (i, j))
    return pl.pallas_call(
        partial(_gates_kernel, activation),
        grid=(rows // block, columns // width),
        in_specs=[own, own, own, pl.BlockSpec((block, 1), lambda i, j: (i, 0))],
        out_specs=[own, own, own],
        out_shape=[jax.ShapeDtypeStruct(gate.shape, dtype) for dtype in (gate.dtype, up.dtype, jnp.int8)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            # gate and up are read where they are in the stack of all layers' ones; works for blocks read as a whole
            allow_input_fusion=(True, True, False, False),
        ),
        name="quantised_gates",
        interpret=interpret,
    )(gate, up, d_hidden, most[:, None])


def _gates_kernel(activation: Activation, gate, up, d_hidden, most, d_gate, d_up, hidden) -> None:  # refs
    product, of_gate, of_up = gated_with_gradients(gate[...], up[...], d_hidden[...], activation)
    d_gate[...], d_up[...] = of_gate.astype(d_gate.dtype), of_up.astype(d_up.dtype)
    scaled = product / scale_of(most[...])
    hidden[...] = to_int8(jnp.clip(scaled, -TOP, TOP))  # the compiler may have made the largest in another order
