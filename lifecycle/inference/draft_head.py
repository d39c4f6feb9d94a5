"""Drafts by a head that was trained for the model (`model/drafter.py`), in the decode loop.

The head gets the model's features of the positions that were computed, with the tokens behind them, and keeps its own
feature of the newest token. From that it drafts, each token from the feature of the one before.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.draft_follower import DraftFollower, Followed, Kinds, shared_kinds
from lifecycle.inference.drafting import Computed, Drafting, NewPages
from lifecycle.inference.weights import block_axes, block_in_use
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.drafter import VOCABULARY, block_config
from lifecycle.model.params import Params, compute_dtype, drafter_parameters
from lifecycle.model.prediction import draft_feature, draft_ids, draft_logits, draft_step
from lifecycle.model.weight_formats import axes_in_use
from lifecycle.parallel.axes import MeshConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head(DraftFollower):
    """A head's arrays, and the model's config with the head's."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})
    num_tokens: int = field(metadata={"static": True})

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose inputs it reads."""
        return self.config.drafter_layers

    @property
    def cached(self) -> ModelConfig:
        """Its block as a model."""
        return block_config(self.config)

    @property
    def kinds(self) -> Kinds:
        """It sees all earlier positions."""
        return shared_kinds(self.cached, self.config, "the drafting head")

    def in_use(self, mesh: Mesh) -> Self:
        """As `Drafter.in_use`. Raises `ConfigError` for a mesh that does not fit the head."""
        self.config.check_mesh(MeshConfig(**mesh.shape))
        return replace(self, params=block_in_use(self.config, drafter_parameters(self.config), self.params, mesh))

    def logical_axes(self) -> Self:
        """As `Drafter.logical_axes`."""
        return replace(self, params=axes_in_use(block_axes(drafter_parameters(self.config)), self.params))

    def empty(self, pages: NewPages) -> Followed:
        """Of empty slots."""
        features = jnp.zeros((pages.num_slots, self.config.d_model), compute_dtype(self.config))
        return Followed(pages.cache(self.cached, self.kinds), features)

    def begin(self, rows: Drafting, newest: Float[Array, "B D"], cache: KVCache) -> tuple[Float[Array, "B D"], KVCache]:
        """The feature that it has."""
        return newest, cache

    def after(
        self,
        params: Params,
        state: Float[Array, "B D"],
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """The next feature."""
        step = state[:, None], token[:, None], position[:, None]
        feature, cache = draft_step(self.config, self.params, params, *step, cache)
        return feature[:, 0], cache

    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """-inf for ids that it cannot draft."""
        scores = draft_logits(self.config, self.params, params, state)
        if VOCABULARY not in self.params:
            return scores
        none = jnp.full((state.shape[0], self.config.vocab_size), -jnp.inf)
        return none.at[:, draft_ids(self.config, self.params)].set(scores)

    def follow(
        self, params: Params, computed: Computed, newest: Float[Array, "R D"], cache: KVCache
    ) -> tuple[Float[Array, "R D"], KVCache]:
        """Its feature of each row's newest token."""
        del newest
        assert computed.taken is not None, "the model was told which layers"
        step = draft_feature(self.config, self.params, computed.taken), jnp.maximum(computed.following, 0)
        cache = self.with_tables(cache, computed.pages)
        feature, cache = draft_step(self.config, self.params, params, *step, computed.kept(cache), cache)
        return computed.last(feature), self.with_tables(cache, {})
