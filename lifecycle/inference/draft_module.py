"""Drafts by the model's own prediction module (`model/mtp.py`), in the decode loop (DeepSeek-V3, section 2.2).

Module 1 gets the decoder's hidden states of the positions that were computed, with the tokens behind them, and keeps
its own hidden state of the newest token's position: the first draft is of that. For each further one module 1 runs
again, on its own hidden state and the draft, as vLLM and SGLang run it, whatever the number of modules. Module `k`
would draft the `k`-th token at the same position; but it needs the `k - 1` tokens before that too, so its cache lags
behind the others' by as many positions, and drafts would have to pass through all of them; most published models have
one.

Which hidden state is its own? SGLang (`deepseek_nextn.py`) takes the one after the module's norm, vLLM
(`deepseek_mtp.py`) the one before. Here it is the one after: in training module 1 sees what comes of a norm.
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
from lifecycle.model.decoder import logits
from lifecycle.model.mtp import cached_layer
from lifecycle.model.params import Params, compute_dtype, module_definition
from lifecycle.model.prediction import module_step
from lifecycle.model.weight_formats import axes_in_use


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Module(DraftFollower):
    """The arrays of module 1, not stacked, and the model's config."""

    params: Params
    config: ModelConfig = field(metadata={"static": True})
    num_tokens: int = field(metadata={"static": True})

    @property
    def cached(self) -> ModelConfig:
        """Its block as a model."""
        return cached_layer(self.config)

    @property
    def kinds(self) -> Kinds:
        """Its block is like the model's last layer."""
        return shared_kinds(self.cached, self.config, "the prediction module")

    def in_use(self, mesh: Mesh) -> Self:
        """As `Drafter.in_use`."""
        return replace(self, params=block_in_use(self.config, module_definition(self.config)[1], self.params, mesh))

    def logical_axes(self) -> Self:
        """As `Drafter.logical_axes`."""
        return replace(self, params=axes_in_use(block_axes(module_definition(self.config)[1]), self.params))

    def empty(self, pages: NewPages) -> Followed:
        """Of empty slots."""
        states = jnp.zeros((pages.num_slots, self.config.d_model), compute_dtype(self.config))
        return Followed(pages.cache(self.cached, self.kinds), states)

    def begin(self, rows: Drafting, newest: Float[Array, "B D"], cache: KVCache) -> tuple[Float[Array, "B D"], KVCache]:
        """The hidden state that it has."""
        return newest, cache

    def after(
        self,
        params: Params,
        state: Float[Array, "B D"],
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """Its hidden state with its last one in the decoder's place."""
        step = state[:, None], token[:, None], position[:, None]
        state_after, cache = module_step(self.config, self.params, params, *step, cache)
        return state_after[:, 0], cache

    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """By the model's head."""
        return logits(self.config, params, state)

    def follow(
        self, params: Params, computed: Computed, newest: Float[Array, "R D"], cache: KVCache
    ) -> tuple[Float[Array, "R D"], KVCache]:
        """Its hidden state of each row's newest token."""
        del newest
        cache = self.with_tables(cache, computed.pages)
        step = computed.hidden, jnp.maximum(computed.following, 0), computed.kept(cache)
        states, cache = module_step(self.config, self.params, params, *step, cache)
        return computed.last(states), self.with_tables(cache, {})
