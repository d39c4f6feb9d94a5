"""Embeddings: a prompt's hidden states, after the last norm, as one vector.

Chunks of the prompt give sums over their tokens and the state of their last one. What must hold: a vector depends on
its prompt only, bit by bit, whatever else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.generation import Generation, NotFiniteError
from lifecycle.inference.sampling import SamplingParams

type Pooling = Literal["mean", "last"]  # of all tokens, or that of the last one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ChunkStates:
    """The hidden states of a chunk in each group of slots, in float32."""

    sum: Float[Array, "G D"]  # over its tokens
    last: Float[Array, "G D"]


def chunk_states(hidden: Float[Array, "T D"], size: Int[Array, ""]) -> ChunkStates:
    """Those of one chunk whose first `size` positions are tokens; of an empty one the last is meaningless."""
    hidden = hidden.astype(jnp.float32)
    is_token = jnp.arange(hidden.shape[0])[:, None] < size
    last = jax.lax.dynamic_slice_in_dim(hidden, jnp.maximum(size - 1, 0), 1)
    return ChunkStates(jnp.where(is_token, hidden, 0.0).sum(0, keepdims=True), last)


class Embedding(Generation):
    """A request for a prompt's vector; it makes no token, and its only event comes with the vector."""

    def __init__(self, prompt: Sequence[int], pooling: Pooling) -> None:
        super().__init__(prompt, SamplingParams(temperature=0.0), max_tokens=0)
        self.pooling: Pooling = pooling
        self.vector: np.ndarray | None = None  # `[D]`, float32, of length 1; there after the event
        self._sum: np.ndarray | None = None
        self._last: np.ndarray | None = None

    @property
    def may_share(self) -> bool:
        """A mean needs the states of all tokens, also of cached ones."""
        return self.pooling == "last"

    @property
    def twin_key(self) -> None:
        """Its states are its own."""
        return None

    def begin(self) -> None:
        """Called by the engine: the prompt's first chunk follows, also after the request has given up its slot."""
        self._sum = None

    def add(self, sums: np.ndarray, last: np.ndarray) -> None:
        """Called by the engine: the states `[D]` of the prompt's next chunk."""
        self._sum = sums.astype(np.float64) if self._sum is None else self._sum + sums
        self._last = last

    def finish(self) -> None:
        """Called by the engine after the last chunk. Raises `NotFiniteError`."""
        assert self._sum is not None and self._last is not None, "it has had a chunk"
        pooled = self._sum / len(self.prompt) if self.pooling == "mean" else self._last
        if not np.isfinite(pooled).all():
            raise NotFiniteError(len(self.prompt))
        self.vector = normalised(pooled)


def normalised(vector: np.ndarray) -> np.ndarray:
    """The vector with length 1, in float32; zeros stay zeros."""
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length if length > 0 else vector).astype(np.float32)
