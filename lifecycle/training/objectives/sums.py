"""The result of an objective: sums with their counts, so that parts of a batch add up exactly."""

from dataclasses import dataclass, field

import jax

from lifecycle.core.typing import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """Sums over a part of a batch; parts are added up, and divided only at the end.

    The gradient is that of `loss`, and of `auxiliary` where there is one, divided by `count`. `metrics` are sums for
    the log, each divided by its own entry in `counts`, or else by `count`. `load`: by stack, how often each expert was
    chosen; router selection biases are updated from it. `auxiliary` is learned too, but is not part of the loss that
    is logged and compared.
    """

    loss: Float[Array, ""]
    count: Float[Array, ""]
    load: dict[str, Float[Array, "L E"]] = field(default_factory=dict)
    metrics: dict[str, Float[Array, ""]] = field(default_factory=dict)
    counts: dict[str, Float[Array, ""]] = field(default_factory=dict)
    auxiliary: Float[Array, ""] | None = None

    @property
    def minimised(self) -> Float[Array, ""]:
        """What the gradient is of."""
        return self.loss if self.auxiliary is None else self.loss + self.auxiliary

    def metric_means(self, divisor: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
        """Each metric's mean; `divisor` is `count`, or the caller's substitute if that is zero."""
        own = {name: self.metrics[name] / (count + (count == 0)) for name, count in self.counts.items()}
        return {name: total / divisor for name, total in self.metrics.items() if name not in own} | own


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
