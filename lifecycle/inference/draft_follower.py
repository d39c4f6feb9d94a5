"""Drafters that follow the model with a cache of their own, and draft token after token.

| drafter | what it follows | what a draft comes from |
|---|---|---|
| `draft_head.py` | the inputs of three layers | a feature, from that of the token before |
| `draft_module.py` | the hidden states after the final norm | a hidden state, from that of the token before |
| `draft_model.py` | the tokens | a hidden state of another model |

After a prompt's chunk and after each step the drafter gets what the model has computed, and the tokens behind it. Its
cache has the pages of the model's, by the same tables: so a prefix that is cached for the model is cached for it, and a
row that gives up its pages loses both. The last position of a cached chunk may depend on the token that followed it in
the request that computed it: at worst a draft is wrong.

Drafts are sampled as the model's tokens are, with the same random numbers and with the drafts before them in the
history: so a draft is the model's token as often as their distributions allow. Where all rows take the likeliest token,
nothing is made of the logits but that.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array, Bool, Float, Int, Shaped
from lifecycle.inference.drafting import Drafter, Drafting
from lifecycle.inference.sampling import History, argmax, sample
from lifecycle.model.cache import KVCache, PageKind, Tables, page_kinds
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params

type Kinds = dict[PageKind, PageKind]  # a drafter's kinds of pages, and those of the model's that it shares tables with


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Followed:
    """What a follower keeps of each slot."""

    cache: KVCache
    newest: Shaped[Array, "B ..."]  # what drafts begin with

    def logical_axes(self) -> "Followed":
        """A tree like the state whose leaves are tuples of logical axis names."""
        rows: Any = ("batch", *[None] * (self.newest.ndim - 1))
        return Followed(self.cache.logical_axes(), rows)


class DraftFollower(Drafter):
    """A drafter with weights and a cache. A draft comes from a state `[B, D]`, and with that the next state."""

    @property
    @abstractmethod
    def cached(self) -> ModelConfig:
        """The model whose cache it has."""

    @property
    @abstractmethod
    def kinds(self) -> Kinds:
        """The kinds of its pages."""

    @abstractmethod
    def begin(
        self, rows: Drafting, newest: Shaped[Array, "B ..."], cache: KVCache
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """The state from which each row's first draft comes, and the cache with what this took."""

    @abstractmethod
    def after(
        self,
        params: Params,
        state: Float[Array, "B D"],
        token: Int[Array, " B"],
        position: Int[Array, " B"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """The state after a token that came from a state; `position`: of the token before it, and `cache.length` in
        rows that draft no further. `params` are the model's."""

    @abstractmethod
    def scores(self, params: Params, state: Float[Array, "B D"]) -> Float[Array, "B drafted"]:
        """The logits of the token that comes from a state, of the ids that it can draft."""

    def of_all_ids(self, scores: Float[Array, "B drafted"]) -> Float[Array, "B V"]:
        """`scores` of all the model's ids, -inf for those that it cannot draft."""
        return scores

    def ids(self, places: Int[Array, " B"]) -> Int[Array, " B"]:
        """The model's ids at places of `scores`."""
        return places

    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: Followed
    ) -> tuple[Int[Array, "B k"], Followed]:
        """As `Drafter.drafts`."""
        state, cache = self.begin(rows, held.newest, self.with_tables(held.cache, rows.pages))
        history = history.with_token(rows.token, may_draft[:, 0])

        is_plain = rows.sampling.take_the_likeliest

        def sampled(state: Array, place: Array | int, history: History) -> Int[Array, " B"]:
            scores, position = self.scores(params, state), rows.position + place + 1

            def drawn() -> Array:
                return sample(self.of_all_ids(scores), rows.sampling, position, jnp.zeros((), bool), history).token

            return jax.lax.cond(is_plain, lambda: self.ids(argmax(scores)), drawn)

        def one(carry: tuple[Array, KVCache, History], at: tuple[Array, Array]) -> tuple[Any, Array]:
            (state, cache, history), (place, goes_on) = carry, at
            token = sampled(state, place, history)
            position = jnp.where(goes_on, rows.position + place, cache.length)
            state, cache = self.after(params, state, token, position, cache)
            return (state, cache, history.with_token(token, goes_on)), token

        num, before = self.num_tokens - 1, []
        if num:
            places = jnp.arange(num), may_draft.T[1:]
            (state, cache, history), tokens = jax.lax.scan(one, (state, cache, history), places)
            before = list(tokens)
        drafts = jnp.stack([*before, sampled(state, num, history)], axis=1)
        return drafts, replace(held, cache=self.with_tables(cache, {}))

    def with_tables(self, cache: KVCache, tables: Tables) -> KVCache:
        """Its cache with the model's tables."""
        return replace(cache, tables={own: tables[others] for own, others in self.kinds.items() if others in tables})


def shared_kinds(own: ModelConfig, model: ModelConfig, who: str) -> Kinds:
    """For each kind of pages of a drafter's cache the kind of the model's that holds as much of a row.

    Raises `ConfigError` if the model has none: its layers forget what lies before their window.
    """
    shared: Kinds = {}
    there = page_kinds(model)
    for kind in page_kinds(own):
        if kind == "window" and "window" in there and (own.window or 0) <= (model.window or 0):
            shared[kind] = "window"
        elif "full" in there:
            shared[kind] = "full"
        else:
            raise ConfigError(
                f"{who} looks further back than this model's layers, which keep {model.window} tokens: there are no "
                "pages for it; set speculation.method=ngram, or leave speculation out"
            )
    return shared
