"""Drafts by another, smaller model with the same tokenizer, in the decode loop (Leviathan et al. 2023).

It reads the tokens that the model computes, a prompt's chunk as a chunk. In a step with drafts it has read them
already, all but the last draft: so whatever it reads next, the newest token in a step without drafts, or to begin with
drafts, it reads *with the token before*. A step costs it as many passes as there are drafts, and none to catch up. A
row that may not draft is read along in the same passes.

Its layers' keys and values lie in pages of the model's numbers; a layer with a window that the model does not have has
pages for all positions.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.draft_follower import DraftFollower, Followed, Kinds, shared_kinds
from lifecycle.inference.drafting import Computed, Drafting, NewPages
from lifecycle.inference.weights import weights_in_use
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_cached
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, axes_apart
from lifecycle.model.weight_formats import axes_in_use
from lifecycle.parallel.axes import MeshConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DraftModel(DraftFollower):
    """The other model's parameters and config, and the config of the model for which it drafts."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})
    model: ModelConfig = field(metadata={"static": True})

    @property
    def cached(self) -> ModelConfig:
        """All of it."""
        return self.config

    @property
    def kinds(self) -> Kinds:
        """Those of its layers."""
        return shared_kinds(self.config, self.model, "speculation.bundle: the draft model")

    def in_use(self, mesh: Mesh) -> Self:
        """As `Drafter.in_use`. Raises `ConfigError` for a mesh that does not fit the draft model."""
        self.config.check_mesh(MeshConfig(**mesh.shape))
        return replace(self, params=weights_in_use(self.config, self.params, mesh))

    def logical_axes(self) -> Self:
        """As `Drafter.logical_axes`."""
        return replace(self, params=axes_in_use(axes_apart(self.config), self.params))

    def empty(self, pages: NewPages) -> Followed:
        """Of empty slots."""
        before = jnp.zeros((pages.num_slots, 1), jnp.int32)
        return Followed(pages.cache(self.config, self.kinds, is_apart=True), before)

    def begin(self, rows: Drafting, newest: Int[Array, "B 1"], cache: KVCache) -> tuple[Float[Array, "B D"], KVCache]:
        """Its hidden state of the newest token; `newest` is the one before."""
        tokens = jnp.concatenate([newest, rows.token[:, None]], axis=1)
        positions = rows.position[:, None] + jnp.array([-1, 0])
        positions = jnp.where((rows.remaining > 0)[:, None], positions, cache.length)
        hidden, cache = forward_cached(self.config, self.params, tokens, positions, cache)
        return hidden[:, 1], cache

    def after(
        self,
        params: Params,
        state: Float[Array, "B D"],
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Its hidden state of the token."""
        at = jnp.minimum(position + 1, cache.length)
        hidden, cache = forward_cached(self.config, self.params, token[:, None], at[:, None], cache)
        return hidden[:, 0], cache

    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Cut, or filled with -inf, to the model's padded vocabulary: the ids of tokens are in both."""
        scores = logits(self.config, self.params, state)[:, : self.model.vocab_size]
        missing = self.model.vocab_size - scores.shape[1]
        return jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)

    def follow(
        self, params: Params, computed: Computed, newest: Int[Array, "R 1"], cache: KVCache
    ) -> tuple[Int[Array, "R 1"], KVCache]:
        """The token before each row's newest."""
        before, tokens = computed.last(computed.tokens)[:, None], jnp.maximum(computed.tokens, 0)
        if computed.what == "drafts":
            return before, cache
        cache = self.with_tables(cache, computed.pages)
        positions = computed.kept(cache)
        if computed.what == "token":
            tokens = jnp.concatenate([newest, tokens], axis=1)
            positions = jnp.concatenate([jnp.where(positions < cache.length, positions - 1, positions), positions], 1)
        _, cache = forward_cached(self.config, self.params, tokens, positions, cache)
        return before, self.with_tables(cache, {})
