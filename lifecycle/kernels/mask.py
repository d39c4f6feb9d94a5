"""Which keys a query may see: a description, from which every implementation of attention builds what it needs.

Positions, segments and a window are all there is: never a dense boolean of `T x T` from outside.
"""

from dataclasses import dataclass, field

import jax
import numpy as np

from lifecycle.core.typing import Array, Bool, Int

MASKED = -1e30  # a score that is not seen; finite, so that a row without keys gives zeros and not NaN
OUT_NAME = "attention_out"  # of attention's output, and log-sum-exp where there is one, for a remat policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Causal, within a segment and a window: query `i` sees key `j` iff all three allow it.

    `query_positions` and `key_positions` are indices on one axis (a row's, or a cache's). Segments may be None, which
    means that all belong together. A query at position `p` sees the positions above `p - window`; None: all before it.

    `row_ways` tells what no array can, that the positions are known when the program is made: the keys are a whole row
    in plain order, positions `0..S-1`, and the queries are the part of it that this device holds of a load-balanced
    cut `row_ways` ways over the mesh axes behind `seq` (`row_order`; 1: the row itself). None: any positions.
    """

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    window: int | None = field(default=None, metadata={"static": True})
    row_ways: int | None = field(default=None, metadata={"static": True})

    def dense(self) -> Bool[Array, "B T S"]:
        queries, keys = self.query_positions[:, :, None], self.key_positions[:, None, :]
        seen = queries >= keys
        if self.window is not None:
            seen &= keys > queries - self.window
        if self.query_segments is not None and self.key_segments is not None:
            seen &= self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return seen


def row_order(length: int, ways: int) -> np.ndarray:
    """The order of a row's positions in which each of `ways` devices gets the same causal work.

    The row is cut into `2 * ways` chunks; device `i` holds chunks `i` and `2 * ways - 1 - i` as
    `order[i * length / ways : (i + 1) * length / ways]`. One way is the plain order.

    Raises `ValueError` when the chunks are not of one length.
    """
    if ways == 1:
        return np.arange(length)
    if length % (2 * ways):
        fit = max(2 * ways, length // (2 * ways) * 2 * ways)
        raise ValueError(
            f"a row of {length} positions is not cut into 2 x {ways} equal chunks over the context axis; "
            f"set seq_len to a multiple of {2 * ways} (nearest: {fit}) or a smaller mesh.context"
        )
    chunks = np.arange(length).reshape(2 * ways, -1)
    return np.stack([chunks[:ways], chunks[: ways - 1 : -1]], axis=1).reshape(-1)
