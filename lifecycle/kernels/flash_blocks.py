"""The flash kernels' schedule: which pairs of blocks they visit, in which order, and the mask inside a pair.

A kernel's grid runs over a list of steps, one per pair of a query block and a key block that is not fully masked, so
masked pairs are neither loaded nor computed and take no step. The lists are made from positions at trace time, exact
for a causal window, and go to scalar memory. Segments are known on the device only: each block's lowest and highest id
are passed with the list, and a pair with disjoint ranges is loaded but not computed. Pairs without any masked entry run
without a mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.mask import MASKED
from lifecycle.parallel.placement import row_order

type Ref = Any  # a kernel's view of an array in VMEM or scalar memory; Pallas has no public type for it
type Segments = tuple[Int[Array, "B T"], Int[Array, "B S"]] | None

LOG2_E = 1.4426950408889634  # e ** x = 2 ** (x * LOG2_E): the chip's own exponential is base 2

QUERY, KEY, FLAGS, HEAD, DONE_QUERY, DONE_HEAD = range(6)  # rows of a list of steps
FIRST, LAST, RUNS, NEW, DONE = (1 << i for i in range(5))  # bits of its FLAGS


@dataclass(frozen=True)
class FlashBlocks:
    """A kernel's largest blocks, in positions (`q` and `kv` are loaded at once, `tile` is multiplied at once), and its
    VMEM."""

    q: int
    kv: int
    tile: int
    dq_bytes: int = 36 << 20  # of the queries' float32 gradients, which stay in VMEM over all key blocks
    vmem_bytes: int = 60 << 20  # total for a kernel


def blocks_of(chip: str, head_dim: int) -> FlashBlocks:
    """Block sizes for a chip (`core.platform.kind_of` names it).

    A step costs about 400 instructions of overhead, so blocks are long; tiles are short, since half of a tile on the
    diagonal is wasted. Counted in the compiler's instruction bundles (without stalls; nothing was timed), a tile of 512
    x 512 without a mask takes, forward + backward, 1,068 + 2,393 on v5p and 870 + 1,469 on v6e; JAX's splash, for as
    many pairs in its best blocks, 1,143 + 3,309 and 884 + 2,053. It uses 100 of 128 MB of VMEM (v5e, v6e), or 60 of 64
    MB; v4 has 16.
    """
    lanes = -(-head_dim // LANES)
    if chip == "TPU v4":
        return FlashBlocks(1024 // lanes, 1024 // lanes, 512 // lanes, dq_bytes=5 << 20, vmem_bytes=16 << 20)
    large = chip in ("TPU v5 lite", "TPU v6 lite")
    size = 2048 // lanes
    return FlashBlocks(size, size, 512, 64 << 20, 100 << 20) if large else FlashBlocks(size, size, 512)


class PaddedLength(NamedTuple):
    """A length padded to a whole number of blocks."""

    length: int
    block: int

    @property
    def num(self) -> int:
        """Number of blocks."""
        return self.length // self.block


def padded_length(length: int, block: int) -> PaddedLength:
    """The fewest blocks of at most `block` that cover `length`, each as short as possible."""
    num = -(-length // block)
    size = -(-length // (num * LANES)) * LANES
    return PaddedLength(num * size, size)


@dataclass(frozen=True)
class Plan:
    """The static description of a call. Queries come as `chunks` chunks of consecutive positions."""

    num_heads: int
    num_kv_heads: int
    key_dim: int  # as the kernels see it: a multiple of the lanes
    value_dim: int
    keys: int  # real length of a row's keys
    num_shards: int
    window: int | None
    scale: float
    soft_cap: float | None
    blocks: FlashBlocks
    interpret: bool

    @property
    def per_group(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

    @property
    def chunks(self) -> int:
        """The number of chunks of a device's queries: a load-balanced shard of a row is two."""
        return 1 if self.num_shards == 1 else 2

    @property
    def chunk(self) -> int:
        """Real length of a chunk."""
        return self.keys // self.num_shards // self.chunks

    @property
    def q(self) -> PaddedLength:
        """One chunk of queries as blocks."""
        return padded_length(self.chunk, self.blocks.q)

    @property
    def kv(self) -> PaddedLength:
        """A row's keys as blocks."""
        return padded_length(self.keys, self.blocks.kv)

    @property
    def tiles(self) -> tuple[int, int]:
        """Numbers of queries and keys that are multiplied at once."""
        return _part(self.q.block, self.blocks.tile), _part(self.kv.block, self.blocks.tile)

    @property
    def num_q(self) -> int:
        """Query blocks of all chunks."""
        return self.chunks * self.q.num


def _part(size: int, most: int) -> int:
    """The longest whole number of lanes that divides a block and is at most `most`."""
    return max(part for part in range(LANES, size + 1, LANES) if size % part == 0 and (part <= most or part == LANES))


@cache
def starts(plan: Plan) -> np.ndarray:
    """`[num_shards, query blocks]`: the position of each block's first query."""
    order = row_order(plan.keys, plan.num_shards).reshape(plan.num_shards, plan.chunks, plan.chunk)
    return (order[..., :1] + np.arange(plan.q.num) * plan.q.block).reshape(plan.num_shards, -1).astype(np.int32)


def _seen(plan: Plan) -> np.ndarray:
    """`[num_shards, query blocks, key blocks]`: whether any query sees any key by their positions."""
    low = starts(plan)[..., None]
    real = np.minimum(plan.q.block, plan.chunk - np.arange(plan.q.num) * plan.q.block)  # without padding
    top = low + np.tile(real, plan.chunks)[:, None] - 1
    first = np.arange(plan.kv.num) * plan.kv.block
    seen = top >= first
    return seen if plan.window is None else seen & (first + plan.kv.block > low - plan.window + 1)


@cache
def forward_steps(plan: Plan) -> np.ndarray:
    """`[num_shards, 3, steps]`: rows QUERY, KEY, FLAGS; query block by query block."""
    lists = []
    for seen in _seen(plan):
        query, key = np.nonzero(seen)
        edge = np.diff(query, prepend=-1, append=-1) != 0
        lists.append(np.stack([query, key, FIRST * edge[:-1] + LAST * edge[1:] + RUNS]))
    return _stacked(lists)


@cache
def backward_steps(plan: Plan, blocks: tuple[int, int]) -> np.ndarray:
    """`[num_shards, 6, steps]`: key block by key block; for each, the group's heads; for each head, the query blocks
    from `blocks[0]` to `blocks[1]`.

    NEW and DONE mark a head's query block at its first and last step. DONE_HEAD and DONE_QUERY name the block in the
    output's window: the next one to be done, else the last one, so each is written once, when it is done.
    """
    return _stacked([_backward_list(seen, plan.per_group) for seen in _seen(plan)[:, blocks[0] : blocks[1]]])


def _backward_list(seen: np.ndarray, per_group: int) -> np.ndarray:
    num_q, num_kv = seen.shape
    visits = seen.copy()
    visits[0, ~seen.any(0)] = True  # a key block that no query sees: one step, to write zeros
    key, head, query = np.nonzero(np.broadcast_to(visits.T[:, None], (num_kv, per_group, num_q)))
    edge = np.diff(key, prepend=-1, append=-1) != 0
    runs = seen[query, key]
    new = runs & (key == seen.argmax(1)[query])
    done = runs & (key == num_kv - 1 - seen[:, ::-1].argmax(1)[query])
    bits = (FIRST, edge[:-1]), (LAST, edge[1:]), (RUNS, runs), (NEW, new), (DONE, done)
    flags = sum(bit * is_set for bit, is_set in bits)
    finished = np.flatnonzero(done)
    window = finished[np.minimum(np.searchsorted(finished, np.arange(len(key))), len(finished) - 1)]
    return np.stack([query, key, flags, head, query[window], head[window]])


def _stacked(lists: list[np.ndarray]) -> np.ndarray:
    """Pads to one length: a shorter device repeats its last step without computing."""
    steps = max(x.shape[1] for x in lists)
    padded = [np.pad(x, [(0, 0), (0, steps - x.shape[1])], mode="edge") for x in lists]
    for rows, x in zip(padded, lists, strict=True):
        rows[FLAGS, x.shape[1] :] = 0
    return np.stack(padded).astype(np.int32)


def spans(plan: Plan, segments: Segments) -> list[Int[Array, "B 2 tiles"]] | list[None]:
    """The lowest and the highest segment of each tile, of the queries and of the keys."""
    if segments is None:
        return [None, None]
    cuts = [ids.reshape(ids.shape[0], -1, tile) for ids, tile in zip(segments, plan.tiles, strict=True)]
    return [jnp.stack([cut.min(-1), cut.max(-1)], axis=1) for cut in cuts]


def each_tile(
    plan: Plan,
    steps: Ref,
    starts: Ref,
    q_spans: Ref,
    k_spans: Ref,
    add: Callable[[Int[Array, ""], Int[Array, ""], Int[Array, ""], bool], None],
) -> None:
    """Calls `add(i, j, distance, is_masked)` for those of this step's tiles that are not fully masked.

    Tile `i` of the query block is `distance` positions behind tile `j` of the key block.
    """
    row, step = pl.program_id(0), pl.program_id(2)
    query, key, flags = (steps[i, step] for i in (QUERY, KEY, FLAGS))
    num = plan.q.block // plan.tiles[0], plan.kv.block // plan.tiles[1]

    def one(t: Array, _: None) -> None:
        i, j = t // num[1], t % num[1]
        distance = starts[query] + i * plan.tiles[0] - key * plan.kv.block - j * plan.tiles[1]
        some, every = _position_test(plan, distance)
        if q_spans is not None:
            ranges = [
                x[row, k, n] for x, n in ((q_spans, query * num[0] + i), (k_spans, key * num[1] + j)) for k in (0, 1)
            ]
            meet, alike = _segment_test(*ranges)
            some, every = jnp.logical_and(some, meet), jnp.logical_and(every, alike)
        pl.when(jnp.logical_and(some, every))(lambda: add(i, j, distance, False))
        pl.when(jnp.logical_and(some, jnp.logical_not(every)))(lambda: add(i, j, distance, True))

    pl.when(flags & RUNS != 0)(lambda: jax.lax.fori_loop(0, num[0] * num[1], one, None))


def _position_test(plan: Plan, distance: Array) -> tuple[Array, Array]:
    """Whether some of a tile's pairs are seen by their positions, and whether all are."""
    queries, keys = plan.tiles
    some, every = distance + queries > 0, distance >= keys - 1
    if plan.window is None:
        return some, every
    return (
        jnp.logical_and(some, distance < plan.window + keys - 1),
        jnp.logical_and(every, distance + queries <= plan.window),
    )


def _segment_test(q_low: Array, q_top: Array, k_low: Array, k_top: Array) -> tuple[Array, Array]:
    """The same for segments, from the tiles' lowest and highest ids."""
    meet = jnp.logical_and(q_low <= k_top, k_low <= q_top)
    return meet, jnp.logical_and(jnp.minimum(q_low, k_low) == q_top, jnp.maximum(q_top, k_top) == k_low)


def masked(
    plan: Plan,
    scores: Float[Array, "rows columns"],
    query_dim: int,
    distance: Int[Array, ""],
    q_ids: Ref,
    k_ids: Ref,
) -> Float[Array, "rows columns"]:
    """A tile's scores with `MASKED` for pairs that are not seen; segment ids as `[1, n]` or None."""
    iota = [jax.lax.broadcasted_iota(jnp.int32, scores.shape, dim) for dim in (query_dim, 1 - query_dim)]
    behind = iota[0] - iota[1]
    seen = behind >= -distance
    if plan.window is not None:
        seen = jnp.logical_and(seen, behind < plan.window - distance)
    if q_ids is not None:
        down, across = (q_ids, k_ids) if query_dim == 0 else (k_ids, q_ids)
        seen = jnp.logical_and(seen, _column(down) == across)
    return jnp.where(seen, scores, MASKED)


def _column(row: Array) -> Array:
    """`[1, n]` as `[n, 1]`."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def bounded(
    products: Float[Array, "rows columns"], scale: float, soft_cap: float | None
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"] | None]:
    """A tile's scores in base 2, and the derivative of the soft cap (None without one)."""
    if soft_cap is None:
        return products * (scale * LOG2_E), None
    bent = jnp.tanh(products * (scale / soft_cap))
    return bent * (soft_cap * LOG2_E), 1 - bent * bent


def rows(index: Int[Array, ""], size: int):
    """The slice of a ref for tile or block `index`."""
    return pl.ds(pl.multiple_of(index * size, size), size)


def times_rows(a: Float[Array, "rows depth"], b: Float[Array, "columns depth"]) -> Float[Array, "rows columns"]:
    """`a b'` in float32."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
