"""Which blocks the flash kernels visit, in which order, and what of a pair of blocks is seen.

A kernel's grid runs over a list of steps, one per pair of a query block and a key block of which something is seen,
so what no query sees is neither loaded nor computed and costs no turn. The lists are made from positions when the
program is traced, exact for a causal window, and lie in scalar memory. Segments are known on the device only: each
block's lowest and highest id lie beside the list, and a pair whose ranges do not meet is loaded but not computed.
Pairs that are seen whole run without a mask.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Int
from lifecycle.kernels.mask import row_order

LANES = 128  # a tile's width; a block's length is a multiple of it
LOG2_E = 1.4426950408889634  # e ** x = 2 ** (x * LOG2_E): the chip's own exponential is base 2

QUERY, KEY, FLAGS, HEAD, DONE_QUERY, DONE_HEAD = range(6)  # rows of a list of steps
FIRST, LAST, RUNS, MASKED, NEW, DONE = (1 << i for i in range(6))  # bits of its FLAGS


@dataclass(frozen=True)
class Blocks:
    """Lengths of the kernels' tiles, at most, and their room."""

    q: int
    kv: int
    compute: int  # the part of a key block that is multiplied at once, forward
    compute_backward: int
    dq_bytes: int = 36 << 20  # float32 gradients of queries that stay in VMEM while the keys pass
    vmem_bytes: int = 60 << 20  # what a kernel may take in all


class Fit(NamedTuple):
    """A length as whole blocks."""

    length: int
    block: int

    @property
    def num(self) -> int:
        return self.length // self.block


def fit(length: int, block: int) -> Fit:
    """The fewest blocks of at most `block` that hold `length`, as short as they can be."""
    num = -(-length // block)
    size = -(-length // (num * LANES)) * LANES
    return Fit(num * size, size)


@dataclass(frozen=True)
class Plan:
    """All that is known of a call when it is traced. Queries come as `chunks` pieces of consecutive positions each."""

    num_heads: int
    num_kv_heads: int
    key_dim: int  # as the kernels see it: whole lanes
    value_dim: int
    keys: int  # real length of a row's keys
    ways: int
    window: int | None
    scale: float
    soft_cap: float | None
    blocks: Blocks
    interpret: bool

    @property
    def per_group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def chunks(self) -> int:
        return 1 if self.ways == 1 else 2

    @property
    def chunk(self) -> int:
        """Real length of a piece."""
        return self.keys // self.ways // self.chunks

    @property
    def q(self) -> Fit:
        """One piece of the queries as blocks."""
        return fit(self.chunk, self.blocks.q)

    @property
    def kv(self) -> Fit:
        return fit(self.keys, self.blocks.kv)

    @property
    def num_q(self) -> int:
        return self.chunks * self.q.num


def part_of(size: int, most: int) -> int:
    """The longest whole number of lanes that divides a block and is at most `most`."""
    return max(part for part in range(LANES, size + 1, LANES) if size % part == 0 and (part <= most or part == LANES))


@cache
def starts(plan: Plan) -> np.ndarray:
    """`[ways, query blocks]`: the position of each block's first query."""
    order = row_order(plan.keys, plan.ways).reshape(plan.ways, plan.chunks, plan.chunk)
    return (order[..., :1] + np.arange(plan.q.num) * plan.q.block).reshape(plan.ways, -1).astype(np.int32)


def _seen(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """`[ways, query blocks, key blocks]`: whether any query sees any key by their positions, and whether all do."""
    low = starts(plan)[..., None]
    real = np.minimum(plan.q.block, plan.chunk - np.arange(plan.q.num) * plan.q.block)  # without padding
    top = low + np.tile(real, plan.chunks)[:, None] - 1
    first = np.arange(plan.kv.num) * plan.kv.block
    last = first + plan.kv.block - 1
    some, whole = top >= first, low >= last
    if plan.window is None:
        return some, whole
    return some & (last > low - plan.window), whole & (first > top - plan.window)


@cache
def forward_steps(plan: Plan) -> np.ndarray:
    """`[ways, 3, steps]`: rows QUERY, KEY, FLAGS; query block by query block."""
    some, whole = _seen(plan)
    lists = []
    for device in range(plan.ways):
        query, key = np.nonzero(some[device])
        edge = np.diff(query, prepend=-1, append=-1) != 0
        flags = FIRST * edge[:-1] + LAST * edge[1:] + RUNS + MASKED * ~whole[device][query, key]
        lists.append(np.stack([query, key, flags]))
    return _stacked(lists)


@cache
def backward_steps(plan: Plan, blocks: tuple[int, int]) -> np.ndarray:
    """`[ways, 6, steps]`: key block by key block, in each the group's heads, in each its queries in `blocks` (from, to).

    NEW and DONE mark a head's query block at its first and last step. DONE_HEAD and DONE_QUERY tell which of them lies
    in the output's window: that which is done next, else the one done last, so each is written once, when it is whole.
    """
    some, whole = (x[:, blocks[0] : blocks[1]] for x in _seen(plan))
    lists = [_backward_list(some[device], whole[device], plan.per_group) for device in range(plan.ways)]
    return _stacked(lists)


def _backward_list(some: np.ndarray, whole: np.ndarray, per_group: int) -> np.ndarray:
    num_kv = some.shape[1]
    visits = some.copy()
    visits[0, ~some.any(0)] = True  # a key that nobody sees: one step, to write zeros
    key, head, query = np.nonzero(np.broadcast_to(visits.T[:, None], (num_kv, per_group, some.shape[0])))
    edge = np.diff(key, prepend=-1, append=-1) != 0
    runs = some[query, key]
    new = runs & (key == some.argmax(1)[query])
    done = runs & (key == num_kv - 1 - some[:, ::-1].argmax(1)[query])
    bits = ((FIRST, edge[:-1]), (LAST, edge[1:]), (RUNS, runs), (MASKED, ~whole[query, key]), (NEW, new), (DONE, done))
    flags = sum(bit * is_set for bit, is_set in bits)
    finished = np.flatnonzero(done)
    window = finished[np.minimum(np.searchsorted(finished, np.arange(len(key))), len(finished) - 1)]
    return np.stack([query, key, flags, head, query[window], head[window]])


def _stacked(lists: list[np.ndarray]) -> np.ndarray:
    """Of one length: a shorter device repeats its last step without doing anything."""
    steps = max(x.shape[1] for x in lists)
    padded = [np.pad(x, [(0, 0), (0, steps - x.shape[1])], mode="edge") for x in lists]
    for rows, x in zip(padded, lists, strict=True):
        rows[FLAGS, x.shape[1] :] = 0
    return np.stack(padded).astype(np.int32)


def spans(segments: Int[Array, "B T"] | None, block: int) -> Int[Array, "B 2 blocks"] | None:
    """The lowest and the highest segment of each block."""
    if segments is None:
        return None
    cut = segments.reshape(segments.shape[0], -1, block)
    return jnp.stack([cut.min(-1), cut.max(-1)], axis=1)


def what_to_do(steps, row, step, q_spans, k_spans) -> tuple[Array, Array]:  # refs of a kernel: untyped
    """Whether this step computes, and whether it needs a mask."""
    query, key, flags = (steps[i, step] for i in (QUERY, KEY, FLAGS))
    runs, masked = flags & RUNS != 0, flags & MASKED != 0
    if q_spans is None:
        return runs, masked
    q_low, q_top = q_spans[row, 0, query], q_spans[row, 1, query]
    k_low, k_top = k_spans[row, 0, key], k_spans[row, 1, key]
    meet = jnp.logical_and(q_low <= k_top, k_low <= q_top)
    alike = jnp.logical_and(jnp.minimum(q_low, k_low) == q_top, k_top == q_top)
    return jnp.logical_and(runs, meet), jnp.logical_or(masked, jnp.logical_not(alike))


def seen_pairs(shape: tuple[int, int], query_dim: int, distance: Array, window: int | None) -> Array:
    """Causal and window, of a tile whose first query lies `distance` behind its first key."""
    iota = [jax.lax.broadcasted_iota(jnp.int32, shape, dim) for dim in (query_dim, 1 - query_dim)]
    behind = iota[0] - iota[1]
    seen = behind >= -distance
    return seen if window is None else jnp.logical_and(seen, behind < window - distance)


def column(row: Array) -> Array:
    """`[1, n]` as `[n, 1]`."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def bounded(products: Array, scale: float, soft_cap: float | None) -> tuple[Array, Array | None]:
    """Scores in base 2 of a tile's products, and the slope of the soft cap."""
    if soft_cap is None:
        return products * (scale * LOG2_E), None
    bent = jnp.tanh(products * (scale / soft_cap))
    return bent * (soft_cap * LOG2_E), 1 - bent * bent
