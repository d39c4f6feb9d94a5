"""The attention mask: a description from which every implementation derives what it needs.

It has positions, segments and a window; a dense `T x T` boolean is never passed.
"""

from dataclasses import dataclass, field

import jax

from lifecycle.core.typing import Array, Bool, Int

MASKED = -1e30  # the score of a masked pair; finite, so that a row without keys gives zeros and not NaN
OUT_NAME = "attention_out"  # of attention's output, and of its log-sum-exp if there is one, for a remat policy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Causal, within a segment and a window: query `i` sees key `j` iff all three allow it.

    `query_positions` and `key_positions` are indices on one axis (a row's, or a cache's). Segments may be None: all are
    equal. A query at position `p` sees the positions above `p - window`; None: no limit.

    `num_shards` means static positions: the keys are a full row in plain order, positions `0..S-1`, and the queries are
    this device's shard of it, in a load-balanced split into `num_shards` over the mesh axes behind `seq` (`row_order`;
    1: the row itself). None: positions are known only at run time.
    """

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    window: int | None = field(default=None, metadata={"static": True})
    num_shards: int | None = field(default=None, metadata={"static": True})

    def dense(self) -> Bool[Array, "B T S"]:
        """Whether each query sees each key, as an array: for plain attention and for tests."""
        queries, keys = self.query_positions[:, :, None], self.key_positions[:, None, :]
        seen = queries >= keys
        if self.window is not None:
            seen &= keys > queries - self.window
        if self.query_segments is not None and self.key_segments is not None:
            seen &= self.query_segments[:, :, None] == self.key_segments[:, None, :]
        return seen
