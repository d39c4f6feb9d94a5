"""Layers whose matrices are rounded one after the other, by what they multiply in calibration rows.

A layer first sees the hidden states that the layers before it make of the rows with their rounded matrices, and counts
for each of its matrices the sum of its inputs' products, `X' X`: the Hessian of the squared error of its outputs. Then
its matrices are rounded, and it is run again. So a layer makes up for the errors before it (Frantar et al. 2022,
"GPTQ", section 4). What must hold: the layers are the model's own, and memory has the Hessians of one layer.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.progress import Progress
from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.linear import ObservedWeight
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import one_layer
from lifecycle.model.embedding import embed
from lifecycle.model.layers import Hidden, for_layer
from lifecycle.model.params import Params, block_definition, layers_apart
from lifecycle.model.quantised import is_quantised
from lifecycle.model.stacks import layer_groups

ROWS = 4  # that a layer sees at a time

# (a matrix `[D, F]`, its Hessian `[D, D]`) -> the rounded matrix
type Rounding = Callable[[np.ndarray, np.ndarray], np.ndarray]


class InputSums:
    """The sums `X' X` of the rows that a layer's matrices multiply, by the matrix's number. Matrices that multiply the
    same rows share one."""

    def __init__(self) -> None:
        self.of: dict[int, Float[Array, "D D"]] = {}
        self._last: tuple[Any, Any] = (None, None)

    def see(self, number: int, x: Float[Array, "*rows D"]) -> None:
        """Adds rows to a matrix's sum."""
        if self._last[0] is not x:
            rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
            self._last = x, rows.T @ rows
        self.of[number] = self._last[1] + self.of.get(number, 0.0)


def calibrated(
    config: ModelConfig, params: Params, rows: Int[Array, "B T"], rounding: Rounding, progress: Progress
) -> Params:
    """The parameters with each layer's matrices rounded, but for those of experts. The rows have no padding."""
    apart = layers_apart(config, params)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), (ROWS, rows.shape[1]))
    batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
    states = [for_layer(config, embed(config, params["embed"], batch)) for batch in batches]
    progress.start("calibrate", config.num_layers)
    for number, (stack, place) in enumerate(_in_order(config)):
        run = [one_layer(config, number, positions[: len(batch)]) for batch in batches]
        weights = _rounded(config, number, apart["blocks"][stack][place], run, states, rounding)
        apart["blocks"][stack][place] = weights
        states = [layer(hidden, weights) for layer, hidden in zip(run, states, strict=True)]
        progress.update(number + 1)
    stacks = {name: jax.tree.map(lambda *own: jnp.stack(own), *layers) for name, layers in apart["blocks"].items()}
    return {**params, "blocks": stacks}


def _in_order(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Each layer's stack, and its place there."""
    for group in layer_groups(config):
        for place in range(group.repeats):
            for stack in group.stacks:
                yield stack, place


def _rounded(
    config: ModelConfig, number: int, weights: Params, run: list[Any], states: list[Hidden], rounding: Rounding
) -> Params:
    declared = jax.tree.leaves(block_definition(config, config.is_moe(number))[1])
    arrays, tree = jax.tree.flatten(weights)
    sums = InputSums()
    is_seen = [is_quantised(known) and len(known.shape) == 2 for known in declared]
    shown = [
        ObservedWeight(array, partial(sums.see, place)) if seen else array
        for place, (array, seen) in enumerate(zip(arrays, is_seen, strict=True))
    ]
    for layer, hidden in zip(run, states, strict=True):
        layer(hidden, jax.tree.unflatten(tree, shown))
    for place, hessian in sums.of.items():
        new = rounding(np.asarray(arrays[place], np.float32), np.asarray(hessian))
        arrays[place] = jnp.asarray(new, arrays[place].dtype)
    return jax.tree.unflatten(tree, arrays)
