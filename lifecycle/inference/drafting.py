"""Drafts of the next tokens, made on the device, which a decode step then verifies (`inference/decoding.py`).

What must hold: drafts decide how fast tokens come, never which: a drafter may be wrong about everything.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Int
from lifecycle.inference.speculation import SpeculationConfig

NONE = -1  # in place of a draft: there is none, nor any behind it
LONGEST, SHORTEST = 4, 2  # tokens of the newest text that an earlier place must end with


class Drafting(Protocol):
    """What a drafter sees of the rows."""

    @property
    def position(self) -> Int[Array, " B"]:
        """Of the newest token."""
        ...

    @property
    def context(self) -> Int[Array, "B L"] | None:
        """All tokens of each row up to the newest."""
        ...


class Drafter(Protocol):
    """Foresees tokens. Static: what it holds on the device is in the slots' state."""

    @property
    def num_tokens(self) -> int:
        """The most drafts of a step."""
        ...

    def drafts(self, rows: Drafting, held: Any) -> tuple[Int[Array, "B k"], Any]:
        """Drafts of the tokens behind the newest one of each row, `NONE` from the first that is not foreseen; and what
        is held then."""
        ...


@dataclass(frozen=True)
class Ngram:
    """The tokens that followed the last place where the row's newest tokens stood before (Saxena 2023, "Prompt lookup
    decoding"): good at edits, quotations and code, and free of weights."""

    num_tokens: int

    def drafts(self, rows: Drafting, held: Any) -> tuple[Int[Array, "B k"], Any]:
        """As `Drafter.drafts`. A text that repeats itself is foreseen beyond its end."""
        assert rows.context is not None
        return jax.vmap(self._of_row)(rows.context, rows.position), held

    def _of_row(self, context: Int[Array, " L"], end: Int[Array, ""]) -> Int[Array, " k"]:
        place = jnp.arange(context.size)
        run, is_equal = jnp.zeros_like(place), jnp.ones(context.shape, bool)
        for back in range(LONGEST):
            before = jnp.pad(context[: context.size - back], (back, 0), constant_values=NONE)
            newest = context[jnp.maximum(end - back, 0)]
            is_equal &= (before == newest) & (place >= back) & (place < end)
            run += is_equal
        # of the longest runs the latest; 0 where there is none
        rank = jnp.where(run >= SHORTEST, run * context.size + place, 0)
        best = rank.max() % context.size
        period = jnp.maximum(end - best, 1)
        following = context[jnp.minimum(best + 1 + jnp.arange(self.num_tokens) % period, context.size - 1)]
        return jnp.where(rank.max() > 0, following, NONE)


def drafter_of(config: SpeculationConfig | None) -> Drafter | None:
    """The drafter that settings describe."""
    return None if config is None else Ngram(config.num_tokens)
