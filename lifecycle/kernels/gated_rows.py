"""The gradients of gated, weighted rows as one TPU kernel, for `gated_product`.

It reads gate, up and the hidden activations' gradient block by block and overwrites them with the gradients of gate and
up and the hidden activations.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.activation import Activation, gated_with_gradients
from lifecycle.kernels.layout import LANES

BLOCK_SIZE, MAX_WIDTH = 1 << 18, 1024  # elements: three blocks in, three out, double-buffered: 6 MB of VMEM in bfloat16


def tpu_gradients(
    activation: Activation,
    gate: Float[Array, "N F"],
    up: Float[Array, "N F"],
    d_hidden: Float[Array, "N F"],
    row_weights: Float[Array, " N"],
    num_rows: Int[Array, ""],
    interpret: bool = False,
) -> tuple[Float[Array, "N F"], Float[Array, "N F"], Float[Array, "N F"], Float[Array, " N"]]:
    """The gradients of gate and up, the hidden activations, and the gradient of the row weights.

    The first three are written over `gate`, `up` and `d_hidden`. From row `num_rows` on, the last one is zero and the
    others are arbitrary.
    """
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
        product, of_gate, of_up = gated_with_gradients(gate[...], up[...], grad * own, activation)
        d_gate[...], d_up[...] = of_gate.astype(d_gate.dtype), of_up.astype(d_up.dtype)
        hidden[...] = (product * own).astype(hidden.dtype)
        is_row = first + jax.lax.broadcasted_iota(jnp.int32, own.shape, 0) < num_rows[0]
        d_weights[...] += jnp.where(is_row, (grad * product).sum(axis=1, keepdims=True), 0)
