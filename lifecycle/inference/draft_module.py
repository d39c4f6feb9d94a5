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

from dataclasses import dataclass

import jax

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.draft_block import DraftBlock
from lifecycle.inference.draft_follower import Kinds, shared_kinds
from lifecycle.inference.drafting import Computed
from lifecycle.model.cache import KVCache
from lifecycle.model.config import ModelConfig
from lifecycle.model.embedding import logits
from lifecycle.model.mtp import cached_layer
from lifecycle.model.params import Params, module_definition
from lifecycle.model.prediction import module_step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Module(DraftBlock):
    """The arrays of module 1, not stacked, and the model's config."""

    @property
    def declared(self) -> Params:
        """Not stacked."""
        return module_definition(self.config)[1]

    @property
    def cached(self) -> ModelConfig:
        """Its block as a model."""
        return cached_layer(self.config)

    @property
    def kinds(self) -> Kinds:
        """Its block is like the model's last layer."""
        return shared_kinds(self.cached, self.config, "the prediction module")

    def states(self, computed: Computed) -> Float[Array, "R T D"]:
        """The decoder's hidden states."""
        return computed.hidden

    def step(
        self,
        params: Params,
        states: Float[Array, "R T D"],
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        cache: KVCache,
    ) -> tuple[Float[Array, "R T D"], KVCache]:
        """Its hidden states after the norm."""
        return module_step(self.config, self.params, params, states, tokens, positions, cache)

    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """By the model's head."""
        return logits(self.config, params, state)
