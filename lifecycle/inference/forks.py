"""Requests that go on from a prompt which another one's slot has just got: a copy of its last pages, and a token of
their own from the same logits. A prompt of which several answers are sampled is computed once."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Int
from lifecycle.inference.sampling import Sampled, SamplingRows, sample
from lifecycle.inference.state import SlotState
from lifecycle.model.cache import Tables, with_copies
from lifecycle.model.config import ModelConfig

FORKS = 8  # in one dispatch, of each group of slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ForkRows:
    """`FORKS` of each group of slots, right after the group's chunk; `N` in all. `M` pages hold the longest chunk."""

    slot: Int[Array, " G"]  # whose prompt it is, within its group
    to: Int[Array, " N"]  # which go on from it; beyond the group's slots: none
    pages: Tables  # of the chunk in `slot`, `[G, M]` within its group's
    copies: Tables  # of the chunk in each of `to`, `[N, M]`; beyond the group's pages: not one
    position: Int[Array, " G"]  # of the next token
    sampling: SamplingRows  # of each of `to`
    want_top: Bool[Array, ""]

    @property
    def adapters(self) -> None:
        """No weights are used."""
        return None


def forked(config: ModelConfig, num_ids: int, state: SlotState, rows: ForkRows) -> tuple[Sampled, SlotState]:
    """The next token of each fork, `[N]`, and the state with their pages."""

    def of_each(of_prompt: Array) -> Array:
        return jnp.repeat(of_prompt, FORKS, axis=0)

    history = jax.tree.map(lambda every: of_each(every[rows.slot]), state.history)
    scores, positions = of_each(state.scores), of_each(rows.position)
    sampled = sample(scores, rows.sampling, positions, rows.want_top, history, num_ids)
    histories = jax.tree.map(lambda every, own: every.at[rows.to].set(own, mode="drop"), state.history, history)
    cache = with_copies(config, state.cache, jax.tree.map(of_each, rows.pages), rows.copies)
    return sampled, replace(state, cache=cache, history=histories)
