"""Drafts of the next tokens, made on the device, which a decode step then verifies (`inference/decoding.py`).

What must hold: drafts decide how fast tokens come, never which: a drafter may be wrong about everything.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Bool, Float, Int, Shaped
from lifecycle.inference.sampling import History, SamplingRows
from lifecycle.model.cache import KVCache, PageKind, Tables, init_pages
from lifecycle.model.config import CacheFormat, ModelConfig
from lifecycle.model.params import Params, compute_dtype

NONE = -1  # in place of a draft: there is none, nor any behind it
LONGEST, SHORTEST = 4, 2  # tokens of the newest text that an earlier place must end with


class Drafting(Protocol):
    """What a drafter sees of the rows."""

    @property
    def pages(self) -> Tables:
        """Of the model's cache."""
        ...

    @property
    def sampling(self) -> SamplingRows:
        """Their settings."""
        ...

    @property
    def token(self) -> Int[Array, " B"]:
        """The newest token, which the model has not computed."""
        ...

    @property
    def position(self) -> Int[Array, " B"]:
        """Of the newest token."""
        ...

    @property
    def remaining(self) -> Int[Array, " B"]:
        """Tokens still wanted; 0: the row is not decoding."""
        ...

    @property
    def context(self) -> Int[Array, "B L"] | None:
        """What is foreseen of each row's output, then all its tokens up to the newest, a half each."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Computed:
    """What the model has computed of each row."""

    tokens: Int[Array, "R T"]
    following: Int[Array, "R T"]  # the token behind each that is kept; -1: it is none of the row's
    positions: Int[Array, "R T"]
    hidden: Float[Array, "R T D"]  # after the final norm
    taken: Float[Array, "R T columns"] | None  # the inputs of the drafter's `layers`, side by side
    pages: Tables
    # chunks of prompts; the newest token; or that and the drafts behind it, which the drafter has made just before
    what: Literal["chunk", "token", "drafts"] = field(metadata={"static": True})

    def kept(self, cache: KVCache) -> Int[Array, "R T"]:
        """The positions of the tokens that are kept; of the others one that the cache does not have."""
        return jnp.where(self.following >= 0, self.positions, cache.length)

    def last(self, values: Shaped[Array, "R T ..."]) -> Shaped[Array, "R ..."]:
        """Each row's values at the last token that is kept."""
        place = jnp.maximum((self.following >= 0).sum(1) - 1, 0)
        return jnp.take_along_axis(values, place.reshape(-1, 1, *[1] * (values.ndim - 2)), axis=1)[:, 0]


@dataclass(frozen=True)
class NewPages:
    """Makes a drafter's cache, with as many pages as the model's has, by whose tables it is read."""

    num_pages: dict[PageKind, int]
    num_slots: int
    length: int
    size: int  # positions of a page
    kv_cache: CacheFormat | None

    def cache(self, config: ModelConfig, kinds: dict[PageKind, PageKind], is_apart: bool = False) -> KVCache:
        """An empty cache of a config; `kinds`: of its pages, and of the model's that lie at the same places."""
        num_pages: dict[PageKind, int] = {own: self.num_pages[others] for own, others in kinds.items()}
        dtype = compute_dtype(config)
        return init_pages(config, num_pages, self.length, dtype, is_apart, self.size, self.kv_cache)


@dataclass(frozen=True)
class Drafter(ABC):
    """Foresees tokens: a tree of its weights; what it keeps of the rows is in the slots' state.

    One that keeps something has `empty` and `follow` (`inference/draft_follower.py`).
    """

    num_tokens: int = field(kw_only=True, metadata={"static": True})  # the most drafts of a step
    reads_context: ClassVar[bool] = False  # whether it needs all tokens of the rows

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose inputs it follows."""
        return ()

    def in_use(self, mesh: Mesh) -> Self:
        """With its weights as the programs take them."""
        del mesh
        return self

    def logical_axes(self) -> Self:
        """A tree like the drafter whose leaves are tuples of logical axis names."""
        return self

    def empty(self, pages: NewPages) -> Any:
        """What it keeps of empty slots."""
        del pages
        return None

    @abstractmethod
    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: Any
    ) -> tuple[Int[Array, "B k"], Any]:
        """Drafts of the tokens behind the newest one of each row, `NONE` from the first that is not foreseen; and what
        is kept then. `params` are the model's. Those that a row may not draft are not used."""

    def follow(
        self, params: Params, computed: Computed, newest: Shaped[Array, "R ..."], cache: KVCache
    ) -> tuple[Shaped[Array, "R ..."], KVCache]:
        """What is kept of each row after the model has computed something, of `newest` before, and the drafter's
        cache."""
        raise AssertionError(f"{type(self).__name__} keeps nothing")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ngram(Drafter):
    """The tokens that followed the last place where the row's newest tokens stood before (Saxena 2023, "Prompt lookup
    decoding"): good at edits, quotations and code, and free of weights. What a request foresees of its output comes
    before the row's own tokens."""

    reads_context: ClassVar[bool] = True

    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: Any
    ) -> tuple[Int[Array, "B k"], Any]:
        """As `Drafter.drafts`. A text that repeats itself is foreseen beyond its end."""
        del params, may_draft, history
        assert rows.context is not None
        newest = rows.context.shape[1] // 2 + rows.position
        return jax.vmap(partial(looked_up, num=self.num_tokens))(rows.context, newest), held


def looked_up(context: Int[Array, " L"], end: Int[Array, ""], num: int) -> Int[Array, " k"]:
    """Drafts of `num` tokens behind the newest one of a row, which is at `end`: those behind the latest of the places
    before whose last tokens, `SHORTEST` to `LONGEST` of them, are most alike; `NONE` if there is no such place."""
    place = jnp.arange(context.size)
    run, is_equal = jnp.zeros_like(place), jnp.ones(context.shape, bool)
    for back in range(LONGEST):
        before = jnp.pad(context[: context.size - back], (back, 0), constant_values=NONE)
        newest = context[jnp.maximum(end - back, 0)]
        is_equal &= (before == newest) & (place >= back) & (place < end)
        run += is_equal
    rank = jnp.where(run >= SHORTEST, run * context.size + place, 0)  # 0: nowhere
    best = rank.max() % context.size
    period = jnp.maximum(end - best, 1)
    following = context[jnp.minimum(best + 1 + jnp.arange(num) % period, context.size - 1)]
    return jnp.where(rank.max() > 0, following, NONE)
