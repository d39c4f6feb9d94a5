"""The host's record of the slots: what each dispatch is told of every row, kept in NumPy."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lifecycle.inference.decode import MAX_STOP_IDS, Rows
from lifecycle.inference.sampling import SamplingParams, SamplingRows


def seed_words(seed: int) -> np.ndarray:
    """The two 32-bit halves of a seed, high first; negative seeds wrap round at 2^64."""
    return np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


class SlotTable:
    """Rows of settings and positions; `rows()` is what the device is given."""

    def __init__(self, num_slots: int) -> None:
        self.token = np.zeros(num_slots, np.int32)
        self.position = np.zeros(num_slots, np.int32)
        self.remaining = np.zeros(num_slots, np.int32)
        self.stop_ids = np.full((num_slots, MAX_STOP_IDS), -1, np.int32)
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.seed = np.zeros((num_slots, 2), np.uint32)
        self.wants_top = np.zeros(num_slots, bool)

    def open(self, slot: int, params: SamplingParams, seed: int, stop_ids: Sequence[int]) -> None:
        """Gives a slot to a request; it does not decode before `start`."""
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.seed[slot] = seed_words(seed)
        self.wants_top[slot] = params.top_logprobs > 0
        self.stop_ids[slot] = -1
        few = list(stop_ids)[:MAX_STOP_IDS]
        self.stop_ids[slot, : len(few)] = few

    def advance(self, slot: int, token: int, position: int, remaining: int) -> None:
        """The slot's newest token, its position, and how many more are wanted."""
        self.token[slot], self.position[slot], self.remaining[slot] = token, position, remaining

    def close(self, slot: int) -> None:
        """The slot is empty: greedy and without filters, so that it costs nothing."""
        self.open(slot, SamplingParams(temperature=0.0), 0, ())
        self.remaining[slot] = 0

    def sampling(self, slots: slice = slice(None)) -> SamplingRows:
        columns = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
        return SamplingRows(*(jnp.array(column[slots]) for column in columns))

    def rows(self) -> Rows:
        """Copies for the device: `jnp.array` never shares memory with what is changed here later."""
        return Rows(
            token=jnp.array(self.token),
            position=jnp.array(self.position),
            remaining=jnp.array(self.remaining),
            stop_ids=jnp.array(self.stop_ids),
            sampling=self.sampling(),
            want_top=jnp.array((self.wants_top & (self.remaining > 0)).any()),
        )
