"""Drafts by a head that was trained for the model (`model/drafter.py`), in the decode loop.

The head gets the model's features of the positions that were computed, with the tokens behind them, and keeps its own
feature of the newest token. From that it drafts, each token from the feature of the one before.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.draft_block import DraftBlock
from lifecycle.inference.draft_follower import Kinds, shared_kinds
from lifecycle.inference.drafting import Computed
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.drafter import VOCABULARY, block_config
from lifecycle.model.params import Params, drafter_parameters
from lifecycle.model.prediction import draft_feature, draft_ids, draft_logits, draft_step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head(DraftBlock):
    """A head's arrays, and the model's config with the head's."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose inputs it reads."""
        return self.config.drafter_layers

    @property
    def declared(self) -> Params:
        """With its vocabulary."""
        return drafter_parameters(self.config)

    @property
    def cached(self) -> ModelConfig:
        """Its block as a model."""
        return block_config(self.config)

    @property
    def kinds(self) -> Kinds:
        """It sees all earlier positions."""
        return shared_kinds(self.cached, self.config, "the drafting head")

    def states(self, computed: Computed) -> Float[Array, "R T D"]:
        """The model's features."""
        assert computed.taken is not None, "the model was told which layers"
        return draft_feature(self.config, self.params, computed.taken)

    def step(
        self,
        params: Params,
        states: Float[Array, "R T D"],
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        cache: KVCache,
    ) -> tuple[Float[Array, "R T D"], KVCache]:
        """The next features."""
        return draft_step(self.config, self.params, params, states, tokens, positions, cache)

    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B drafted"]:
        """By its own rows of the model's head."""
        return draft_logits(self.config, self.params, params, state)

    def of_all_ids(self, scores: Float[Array, "B drafted"]) -> Float[Array, "B V"]:
        """As `DraftFollower.of_all_ids`."""
        if VOCABULARY not in self.params:
            return scores
        none = jnp.full((scores.shape[0], self.config.vocab_size), -jnp.inf)
        return none.at[:, draft_ids(self.config, self.params)].set(scores)

    def ids(self, places: Int[Array, " B"]) -> Int[Array, " B"]:
        """As `DraftFollower.ids`."""
        return draft_ids(self.config, self.params)[places]
