"""Drafts of the next tokens, made on the device, which a decode step then verifies (`inference/decoding.py`).

What must hold: drafts decide how fast tokens come, never which: a drafter may be wrong about everything.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.sampling import History, SamplingRows
from lifecycle.model.cache import KVCache, PageKind, Tables
from lifecycle.model.params import Params

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
    def position(self) -> Int[Array, " B"]:
        """Of the newest token."""
        ...

    @property
    def context(self) -> Int[Array, "B L"] | None:
        """All tokens of each row up to the newest."""
        ...


class Drafter(ABC):
    """Foresees tokens. Static: what it holds on the device is in the slots' state.

    One that follows the model names its `layers`, and has `empty` and `follow`; others hold nothing.
    """

    num_tokens: int  # the most drafts of a step
    reads_context: ClassVar[bool] = False  # whether it needs all tokens of the rows

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the model whose inputs it follows."""
        return ()

    def empty(self, num_pages: dict[PageKind, int], num_slots: int, length: int, dtype: str, page: int) -> Any:
        """What it holds of empty slots, with pages as the model's cache has them."""
        del num_pages, num_slots, length, dtype, page
        return None

    @abstractmethod
    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: Any
    ) -> tuple[Int[Array, "B k"], Any]:
        """Drafts of the tokens behind the newest one of each row, `NONE` from the first that is not foreseen; and what
        is held then. Those that a row may not draft are not used."""

    def follow(
        self,
        params: Params,
        taken: Float[Array, "R T columns"],
        following: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        pages: Tables,
        cache: KVCache,
    ) -> tuple[Float[Array, "R D"], KVCache]:
        """What is held after the model has computed `taken` at some positions (`inference/draft_head.py`)."""
        raise AssertionError(f"{type(self).__name__} follows no layers")


@dataclass(frozen=True)
class Ngram(Drafter):
    """The tokens that followed the last place where the row's newest tokens stood before (Saxena 2023, "Prompt lookup
    decoding"): good at edits, quotations and code, and free of weights."""

    num_tokens: int
    reads_context: ClassVar[bool] = True

    def drafts(
        self, params: Params, rows: Drafting, may_draft: Bool[Array, "B k"], history: History, held: Any
    ) -> tuple[Int[Array, "B k"], Any]:
        """As `Drafter.drafts`. A text that repeats itself is foreseen beyond its end."""
        del params, may_draft, history
        assert rows.context is not None
        return jax.vmap(partial(looked_up, num=self.num_tokens))(rows.context, rows.position), held


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
