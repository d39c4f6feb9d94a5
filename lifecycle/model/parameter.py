"""A parameter's declaration, in its layer: shape, logical axes, and how training and inference treat it.

A layer's attribute is `matrix(...)` or `vector(...)`, which makes the initial values. Everything else about parameters
(sharding, casting, optimizers, the planner) is read from a model's declarations: `model/params.py`. The logical axes
are not nnx sharding metadata, which nnx would check against the mesh in scope.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

type Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter's declaration."""

    shape: tuple[int, ...]
    axes: Axes  # the logical axis of each dimension; None: never sharded
    is_matrix: bool  # weight decay and Muon apply to it: not to norm scales, biases, sinks
    is_float32: bool = False  # float32 in use, too: small, and used where the computation is in float32 anyway
    # The dimension that a product sums over, from the end; None: no product (a table whose rows are taken, a vector).
    fan_in: int | None = None
    dtype: str = "float32"  # as it is trained, or held

    @property
    def is_stacked(self) -> bool:
        """Whether the first dimension is a stack's layers, or the prediction modules."""
        return self.axes[:1] in (("layers",), ("modules",))

    def of_stack(self, num: int, axis: str = "layers") -> "Parameter":
        """The same parameter, stacked over `num` layers or modules."""
        return replace(self, shape=(num, *self.shape), axes=(axis, *self.axes))


def matrix(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, scale: float = 1.0, *, is_float32: bool = False
) -> nnx.Param:
    """A weight `[..., rows, columns]` with variance `scale^2 / rows`, so that a product keeps its input's size."""
    return normal(rngs, shape, axes, scale * shape[-2] ** -0.5, fan_in=-2, is_float32=is_float32)


def normal(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: Axes,
    deviation: float,
    *,
    fan_in: int | None,
    is_float32: bool = False,
) -> nnx.Param:
    """A matrix of normal values with this standard deviation."""
    declared = Parameter(shape, axes, is_matrix=True, is_float32=is_float32, fan_in=fan_in)
    return nnx.Param(jax.random.normal(rngs.params(), shape) * deviation, declared=declared)


def vector(shape: tuple[int, ...], axes: Axes, value: float = 0.0, *, is_float32: bool = False) -> nnx.Param:
    """A vector, or one per expert, filled with one value."""
    declared = Parameter(shape, axes, is_matrix=False, is_float32=is_float32)
    return nnx.Param(jnp.full(shape, value, jnp.float32), declared=declared)
