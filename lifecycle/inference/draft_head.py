"""Drafts by a head that was trained for the model (`model/drafter.py`), in the decode loop.

The head follows the model: after a prompt's chunk and after each step it gets the model's features of the positions
that were computed, with the tokens behind them, and keeps its own feature of the newest token. From that it drafts,
each token from the feature of the one before. Its cache has the pages of the model's, by the same tables.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.drafting import Drafter, Drafting, Ngram
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import History, sample
from lifecycle.inference.speculation import SpeculationConfig
from lifecycle.model.cache import KVCache, PageKind, Tables, init_pages
from lifecycle.model.config import ModelConfig
from lifecycle.model.drafter import VOCABULARY, block_config
from lifecycle.model.params import Params
from lifecycle.model.prediction import draft_feature, draft_ids, draft_logits, draft_step
from lifecycle.model.stacks import DRAFTER


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class HeadState:
    """What a head keeps of each slot."""

    cache: KVCache
    feature: Float[Array, "B D"]  # its own, of the newest token's position

    def logical_axes(self) -> "HeadState":
        """A tree like the state whose leaves are tuples of logical axis names."""
        rows: Any = ("batch", None)
        return HeadState(self.cache.logical_axes(), rows)


@dataclass(frozen=True)
class Head(Drafter):
    """A drafter with weights, which are among the model's as `DRAFTER`."""

    num_tokens: int
    config: ModelConfig  # the model's with the head's

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose inputs it reads."""
        return self.config.drafter_layers

    def empty(self, num_pages: dict[PageKind, int], num_slots: int, length: int, dtype: str, page: int) -> HeadState:
        """Of empty slots. Raises `ConfigError` for a model without full attention, whose pages it would need."""
        if "full" not in num_pages:
            raise ConfigError("a drafting head needs a model with layers of full attention; leave speculation out")
        pages: dict[PageKind, int] = {"full": num_pages["full"]}
        cache = init_pages(block_config(self.config), pages, length, dtype, page=page)
        return HeadState(cache, jnp.zeros((num_slots, self.config.d_model), dtype))

    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: HeadState
    ) -> tuple[Int[Array, "B k"], HeadState]:
        """As `Drafter.drafts`. What is drafted is sampled as the model's tokens are, with the same random numbers: so
        it is the model's token as often as their distributions allow."""
        feature, cache, drafts = held.feature, _with(held.cache, rows.pages), []
        for place in range(self.num_tokens):
            if place:
                positions = jnp.where(may_draft[:, place], rows.position + place - 1, cache.length)
                step = feature[:, None], drafts[-1][:, None], positions[:, None]
                after, cache = draft_step(self.config, params[DRAFTER], params, *step, cache)
                feature = after[:, 0]
            scores = self._scores(params, feature)
            position = rows.position + place + 1
            drafts.append(sample(scores, rows.sampling, position, jnp.zeros((), bool), history).token)
        return jnp.stack(drafts, axis=1), replace(held, cache=_with(cache, {}))

    def _scores(self, params: Params, feature: Float[Array, "B D"]) -> Float[Array, "B V"]:
        scores = draft_logits(self.config, params[DRAFTER], params, feature)
        if VOCABULARY not in params[DRAFTER]:
            return scores
        none = jnp.full((feature.shape[0], self.config.vocab_size), -jnp.inf)
        return none.at[:, draft_ids(self.config, params[DRAFTER])].set(scores)

    def follow(
        self,
        params: Params,
        taken: Float[Array, "R T columns"],
        following: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        pages: Tables,
        cache: KVCache,
    ) -> tuple[Float[Array, "R D"], KVCache]:
        """The head's feature of each row's newest token, and its cache, after the model has computed `taken` at some
        positions; `following`: the token behind each, -1 where a row has no more."""
        places = jnp.where(following >= 0, positions, cache.length)
        feature = draft_feature(self.config, params[DRAFTER], taken)
        step = feature, jnp.maximum(following, 0), places
        after, cache = draft_step(self.config, params[DRAFTER], params, *step, _with(cache, pages))
        last = jnp.maximum((following >= 0).sum(1) - 1, 0)
        return jnp.take_along_axis(after, last[:, None, None], axis=1)[:, 0], _with(cache, {})


def drafter_of(config: SpeculationConfig | None, model: Model) -> Drafter | None:
    """The drafter that settings describe. Raises `ConfigError` if the model has no drafting head and they want one."""
    if config is None:
        return None
    if config.method == "ngram":
        return Ngram(config.num_tokens)
    if model.drafter is None:
        raise ConfigError(
            "speculation.method=eagle: the bundle has no folder `drafter`; train one with a stage `eagle` "
            "(docs/drafting.md), or set speculation.method=ngram"
        )
    return Head(config.num_tokens, model.drafter.config)


def weights_with(model: Model, drafter: Drafter | None) -> tuple[ModelConfig, Params]:
    """The model's config and parameters, with those of its head where that drafts."""
    if isinstance(drafter, Head) and model.drafter is not None:
        return model.drafter.config, {**model.params, DRAFTER: model.drafter.params}
    return model.config, model.params


def _with(cache: KVCache, tables: Tables) -> KVCache:
    return replace(cache, tables={kind: table for kind, table in tables.items() if kind == "full"})
