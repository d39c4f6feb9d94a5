"""The result of an objective: sums with their counts, so that parts of a batch add up exactly; extremes beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from operator import add
from typing import Any, Self

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.parallel.placement import largest_over_mesh, sum_over_mesh


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """Sums over a part of a batch; parts are added up, and divided only at the end.

    The gradient is that of `loss`, and of `auxiliary` where there is one, divided by `count`. `metrics` are sums for
    the log, each divided by its own entry in `counts`, or else by `count`. `load`: by stack, how often each expert was
    chosen; router selection biases are updated from it. `auxiliary` is learned too, but is not part of the loss that
    is logged and compared. `largest` and `smallest` are for the log too: the extremes of values over the batch, which
    are infinite where a part has none.
    """

    loss: Float[Array, ""]
    count: Float[Array, ""]
    load: dict[str, Float[Array, "L E"]] = field(default_factory=dict)
    metrics: dict[str, Float[Array, ""]] = field(default_factory=dict)
    counts: dict[str, Float[Array, ""]] = field(default_factory=dict)
    auxiliary: Float[Array, ""] | None = None
    largest: dict[str, Float[Array, ""]] = field(default_factory=dict)
    smallest: dict[str, Float[Array, ""]] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        """Both parts together."""
        rules = {"largest": jnp.maximum, "smallest": jnp.minimum}
        parts = {of.name: (getattr(self, of.name), getattr(other, of.name)) for of in fields(self)}
        return type(self)(**{name: jax.tree.map(rules.get(name, add), *both) for name, both in parts.items()})

    def with_sums(self, function: Callable[[Any], Any]) -> Self:
        """A function of all but the extremes, as one tree, which stay as they are."""
        sums = function(replace(self, largest={}, smallest={}))
        return replace(sums, largest=self.largest, smallest=self.smallest)

    def with_extremes(self, largest: Callable[[Any], Any]) -> Self:
        """A function of the largest values, as one tree, which does the same with the smallest: of their negatives."""
        signed = largest((self.largest, jax.tree.map(jnp.negative, self.smallest)))
        return replace(self, largest=signed[0], smallest=jax.tree.map(jnp.negative, signed[1]))

    def empty(self) -> Self:
        """The sums of nothing, of these shapes."""
        zero = self.with_sums(lambda sums: jax.tree.map(jnp.zeros_like, sums))
        return replace(
            zero,
            largest={name: jnp.full_like(value, -jnp.inf) for name, value in self.largest.items()},
            smallest={name: jnp.full_like(value, jnp.inf) for name, value in self.smallest.items()},
        )

    def over_mesh(self, mesh: AnyMesh) -> Self:
        """Those of all devices' rows and positions together."""
        sums = self.with_sums(lambda tree: sum_over_mesh(tree, mesh))
        return sums.with_extremes(lambda tree: largest_over_mesh(tree, mesh))

    @property
    def minimised(self) -> Float[Array, ""]:
        """What the gradient is of."""
        return self.loss if self.auxiliary is None else self.loss + self.auxiliary

    def metric_means(self, divisor: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
        """Each metric's mean; `divisor` is `count`, or the caller's substitute if that is zero."""
        own = {name: self.metrics[name] / (count + (count == 0)) for name, count in self.counts.items()}
        return {name: total / divisor for name, total in self.metrics.items() if name not in own} | own

    @property
    def extremes(self) -> dict[str, Float[Array, ""]]:
        """The largest and the smallest values by their names."""
        return self.largest | self.smallest


def largest_of(values: Float[Array, "*units"], is_there: Float[Array, "*units"]) -> Float[Array, ""]:
    """The largest of the values that are there; -inf if none is."""
    return jnp.where(is_there > 0, values, -jnp.inf).max()


def smallest_of(values: Float[Array, "*units"], is_there: Float[Array, "*units"]) -> Float[Array, ""]:
    """The smallest of the values that are there; inf if none is."""
    return jnp.where(is_there > 0, values, jnp.inf).min()


def sums_over(
    mask: Float[Array, "*units"],
    losses: Float[Array, "*units"],
    metrics: dict[str, Float[Array, "*units"] | tuple[Float[Array, "*units"], Float[Array, "*units"]]],
) -> Sums:
    """Sums over the units (tokens, pairs) of `mask`. A metric is a value per unit, averaged over units, or a pair of
    values and their counts, for example log-probabilities and numbers of tokens."""
    totals, counts = {}, {}
    for name, metric in metrics.items():
        values, counted = metric if isinstance(metric, tuple) else (metric, None)
        totals[name] = (values * mask).sum()
        if counted is not None:
            counts[name] = (counted * mask).sum()
    return Sums((losses * mask).sum(), mask.sum(), metrics=totals, counts=counts)
