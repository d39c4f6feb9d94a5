"""Adafactor (Shazeer and Stern 2018): Adam's second moment, of which a matrix keeps its rows' and its columns' means.

For a matrix `[rows, columns]` the state has `rows + columns` numbers instead of Adam's `2 rows columns`: there is no
first moment. Vectors keep their full second moment. Each matrix of a stack, and each layer's vector, is treated by
itself. An update has at most the root mean square 1 of Adam's, so that one learning rate serves both: it is not
multiplied by the parameter's size (section 8).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lifecycle.core.typing import Array, Float
from lifecycle.model.params import Params

DECAY = 0.8  # beta2 after t steps is 1 - t^-0.8 (section 7.2)
FLOOR = 1e-30  # added to squared gradients (the paper's epsilon 1)
CLIP = 1.0  # the root mean square that an update is scaled down to (section 6)


class AdafactorState(NamedTuple):
    """Means of squared gradients, each a tree like that of the parameters; averaged dimensions have size 1.

    `rows`: over the columns of matrices, and the vectors' own. `columns`: over the rows; zeros for vectors.
    """

    steps: Array
    rows: Params
    columns: Params


def scale_by_adafactor(parameters: Params) -> optax.GradientTransformation:
    """Gradients divided by the root of their factored second moment. `parameters`: a tree of `Parameter`s with the
    leaves' paths."""
    is_matrix = {path: leaf.is_matrix for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)}

    def mean(path: Any, x: Array, dim: int) -> Array:
        if is_matrix[path]:
            return x.mean(dim, keepdims=True)
        return x if dim == -1 else jnp.zeros_like(x[..., :1])

    def means(squares: Params, dim: int) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, x: mean(path, x, dim), squares)

    def init(params: optax.Params) -> AdafactorState:
        zeros: Any = jax.tree.map(jnp.zeros_like, params)
        return AdafactorState(jnp.zeros((), jnp.int32), means(zeros, -1), means(zeros, -2))

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[Params, AdafactorState]:
        del params
        steps = state.steps + 1
        new = steps.astype(jnp.float32) ** -DECAY  # the weight of this step's squares
        squares: Any = jax.tree.map(lambda g: g * g + FLOOR, updates)
        rows, columns = (
            jax.tree.map(lambda old, x: (1 - new) * old + new * x, before, means(squares, dim))
            for before, dim in ((state.rows, -1), (state.columns, -2))
        )
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, g, r, c: _clipped(g * _inverse_root(r, c, is_matrix[path]), is_matrix[path]),
            updates,
            rows,
            columns,
        )
        return scaled, AdafactorState(steps, rows, columns)

    return optax.GradientTransformation(init, update)


def _inverse_root(rows: Array, columns: Array, is_matrix: bool) -> Array:
    """`(R C / mean(R))^-1/2`, the factored second moment (algorithm 4), or a vector's own."""
    return (rows / rows.mean(-2, keepdims=True)) ** -0.5 * columns**-0.5 if is_matrix else rows**-0.5


def _clipped(update: Float[Array, "..."], is_matrix: bool) -> Float[Array, "..."]:
    """Each matrix or vector scaled down to a root mean square of at most `CLIP`."""
    size = jnp.sqrt(jnp.mean(update**2, axis=(-2, -1) if is_matrix else -1, keepdims=True))
    return update / jnp.maximum(1.0, size / CLIP)
