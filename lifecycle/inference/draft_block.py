"""Drafters of one block beside the model's layers, with its embedding and head: a trained head, a prediction module.

The block goes on from a state of the position before the newest token; what the model has computed gives the first one
of a step, and the block's own output those of the drafts behind it.
"""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.draft_follower import DraftFollower, Followed
from lifecycle.inference.drafting import Computed, Drafting, NewPages
from lifecycle.inference.weights import block_axes, block_in_use
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, compute_dtype
from lifecycle.model.weight_formats import axes_in_use
from lifecycle.parallel.axes import MeshConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftBlock(DraftFollower):
    """The block's arrays, and the model's config with the block's."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})

    @property
    @abstractmethod
    def declared(self) -> Params:
        """The declarations of its arrays."""

    @abstractmethod
    def states(self, computed: Computed) -> Float[Array, "R T D"]:
        """Those that follow from what the model has computed."""

    @abstractmethod
    def step(
        self,
        params: Params,
        states: Float[Array, "R T D"],
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        cache: KVCache,
    ) -> tuple[Float[Array, "R T D"], KVCache]:
        """The next states, of positions and the tokens behind them."""

    def in_use(self, mesh: Mesh) -> Self:
        """As `Drafter.in_use`. Raises `ConfigError` for a mesh that does not fit the block."""
        self.config.check_mesh(MeshConfig(**mesh.shape))
        return replace(self, params=block_in_use(self.config, self.declared, self.params, mesh))

    def logical_axes(self) -> Self:
        """As `Drafter.logical_axes`."""
        return replace(self, params=axes_in_use(block_axes(self.declared), self.params))

    def empty(self, pages: NewPages) -> Followed:
        """Of empty slots."""
        states = jnp.zeros((pages.num_slots, self.config.d_model), compute_dtype(self.config))
        return Followed(pages.cache(self.cached, self.kinds), states)

    def begin(self, rows: Drafting, newest: Float[Array, "B D"], cache: KVCache) -> tuple[Float[Array, "B D"], KVCache]:
        """The state that it has."""
        return newest, cache

    def after(
        self,
        params: Params,
        state: Float[Array, "B D"],
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """As `DraftFollower.after`."""
        states, cache = self.step(params, state[:, None], token[:, None], position[:, None], cache)
        return states[:, 0], cache

    def follow(
        self, params: Params, computed: Computed, newest: Float[Array, "R D"], cache: KVCache
    ) -> tuple[Float[Array, "R D"], KVCache]:
        """Its state of each row's newest token."""
        del newest
        cache, tokens = self.with_tables(cache, computed.pages), jnp.maximum(computed.following, 0)
        states, cache = self.step(params, self.states(computed), tokens, computed.kept(cache), cache)
        return computed.last(states), self.with_tables(cache, {})
