"""Requests that go on from a prompt which another one's slot has just got: a copy of its last pages, and a token of
their own from the same logits. A prompt of which several answers are sampled is computed once."""

from dataclasses import dataclass, replace

import jax

from lifecycle.core.typing import Array, Bool, Int
from lifecycle.inference.sampling import Sampled, SamplingRows, sample
from lifecycle.inference.state import SlotState
from lifecycle.model.cache import Tables, with_copies
from lifecycle.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForkRows:
    """One fork per group of slots, right after the group's chunk. `M` pages hold the longest chunk."""

    slot: Int[Array, " G"]  # whose prompt it is, within its group
    to: Int[Array, " G"]  # which goes on from it; beyond the group's slots: none
    pages: Tables  # of the chunk in `slot`, `[G, M]` within its group's
    copies: Tables  # of the chunk in `to`; beyond the group's pages: not one
    position: Int[Array, " G"]  # of the next token
    sampling: SamplingRows
    want_top: Bool[Array, ""]

    @property
    def adapters(self) -> None:
        """No weights are used."""
        return None


def forked(config: ModelConfig, num_ids: int, state: SlotState, rows: ForkRows) -> tuple[Sampled, SlotState]:
    """The next token of each group's fork, `[G]`, and the state with its pages."""
    slot, to = rows.slot[0], rows.to[0]
    history = jax.tree.map(lambda every: every[slot][None], state.history)
    sampled = sample(state.scores, rows.sampling, rows.position, rows.want_top, history, num_ids)
    histories = jax.tree.map(lambda every, one: every.at[to].set(one[0], mode="drop"), state.history, history)
    cache = with_copies(config, state.cache, rows.pages, rows.copies)
    return sampled, replace(state, cache=cache, history=histories)
