"""A pipeline of stages: each device of the `stage` axis holds a run of layers and passes rows on (Huang et al. 2019).

Every row of a device's micro-batch is a micro-batch of the pipeline. In tick `i`, stage `s` computes row `i - s`; all
stages send what they have to the next one, round in a ring, so after `rows + stages - 1` ticks all rows are through. A
stage without a row of its own computes on what is at hand, and nothing of that is used: the idle share is
`(stages - 1) / (rows + stages - 1)`. The gradient is the same ring backwards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.collectives import index, scatter_sum, shift, ways
from lifecycle.core.typing import Array, Float

AXIS = "layers"

type Stage = Callable[[Float[Array, "1 T D"], Array], tuple[Float[Array, "1 T D"], Any]]


def run_pipeline(stage: Stage, x: Float[Array, "B T D"]) -> tuple[Float[Array, "b T D"], Any]:
    """`stage` (a function of a row's input and its number) one after the other over all stages.

    Returns the rows that this stage goes on with (`own_rows`), and the sum over its rows of what `stage` says besides.
    """
    stages, here, rows = ways(AXIS), index(AXIS), x.shape[0]

    def tick(incoming: Array, number: Array) -> tuple[Array, tuple[Array, Any]]:
        row = jnp.clip(number - here, 0, rows - 1)
        out, found = stage(jnp.where(here == 0, take_row(x, row), incoming), row)
        found = jax.tree.map(lambda value: jnp.where(row == number - here, value, 0), found)
        return shift(out, AXIS), (out, found)

    _, (outs, found) = jax.lax.scan(tick, jnp.zeros_like(x[:1]), jnp.arange(rows + stages - 1))
    last = jnp.where(here == stages - 1, outs[stages - 1 :, 0], 0)
    return scatter_sum(last, AXIS, 0), jax.tree.map(lambda value: value.sum(axis=0), found)


def take_row(x: Array, row: Array) -> Array:
    """`x[row : row + 1]`."""
    return jax.lax.dynamic_slice_in_dim(x, row, 1)


def own_rows(x: Array) -> Array:
    """The rows of a batch whose last hidden states are this stage's: the head's work is shared by all stages. The whole
    batch where there is no pipeline."""
    stages = ways(AXIS)
    return x if stages == 1 else jax.lax.dynamic_slice_in_dim(x, index(AXIS) * (len(x) // stages), len(x) // stages)


def among_layers(found: Any) -> Any:
    """What each stage says of its own layers, `[layers here, ...]`, as a part of a sum over stages `[layers, ...]`."""
    stages = ways(AXIS)

    def placed(value: Array) -> Array:
        whole = jnp.zeros((stages * value.shape[0], *value.shape[1:]), value.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, value, index(AXIS) * value.shape[0], 0)

    return jax.tree.map(placed, found)
