"""Some layers' inputs, taken on a forward pass's way: what a drafter reads of its target (`model/drafter.py`).

What must hold: without layers to take, the forward pass is the same program.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.model.cut_hidden import to_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taken:
    """The inputs of `layers`, the residual sums before them. The last of `states` is for all other layers: a scan's
    step writes one place, whichever layer it is, and copies nothing."""

    layers: tuple[int, ...] = field(metadata={"static": True})
    states: Float[Array, "places B t D"] | None

    @classmethod
    def of(cls, layers: tuple[int, ...], x: Float[Array, "B t D"]) -> Self:
        """Nothing yet; `x` is the first layer's input."""
        return cls(layers, jnp.zeros((len(layers) + 1, *x.shape), x.dtype) if layers else None)

    def at(self, layer: Int[Array, ""] | int, x: Float[Array, "B t D"]) -> "Taken":
        """With the input of a layer, by its number, if it is one of those wanted."""
        if self.states is None:
            return self
        is_this = jnp.asarray(self.layers) == layer
        place = jnp.where(is_this.any(), is_this.argmax(), len(self.layers))
        return replace(self, states=jax.lax.dynamic_update_index_in_dim(self.states, x, place, 0))

    def side_by_side(self) -> Float[Array, "B t columns"] | None:
        """The inputs in the order of `layers`, along the last dimension; None of no layers."""
        return None if self.states is None else jnp.concatenate([to_rows(x) for x in self.states[:-1]], axis=-1)
