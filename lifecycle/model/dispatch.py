"""Dispatch: moves tokens to their experts' devices and back.

Rows (one per token and chosen expert) are sorted by expert, so by device too. Every device knows the counts of all
devices, and so where each of its slices goes in the receiver's buffer. The buffer is sorted by expert and then by
sender: received rows need no further sorting. On TPUs and GPUs `jax.lax.ragged_all_to_all` writes each slice to its
target and moves only existing rows. XLA has no such operation for CPUs: there, devices exchange blocks of a fixed
capacity with `jax.lax.all_to_all`, just once unless a pair of devices has more rows than a block.

A receiver's buffer has a fixed number of rows. Further rows come in further rounds, so nothing is ever dropped and no
buffer is sized for the worst case, which is the even load times the number of devices. What must hold: the gradient of
a move is the reverse move, and that of sorting its inverse; both are gathers, never scatters.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.parallel.collectives import all_gather, all_to_all, axes_of, axis_size, pmax

# Rows of a receiver's buffer in the first round, in units of an even load. A further round reads all expert weights
# again, so it should be rare; but the largest arrays of the layer have this many rows, and elementwise work processes
# all of them.
ROOM = 1.25
# The same in a further round. Its memory is allocated even in a step without further rounds: with as many rows as in
# the first round, 1.4 of Mixtral's 17 GB on a v5p 4x4x4.
FURTHER = 0.25
# Rows of a block between two devices, if blocks are exchanged, in units of an even load.
BLOCK_ROOM = 1.25


class Slices(NamedTuple):
    """Where the rows of a round start and end, for each peer and each expert: `[peers, experts of one device]`."""

    send_starts: Int[Array, "W X"]  # in this device's rows
    send_sizes: Int[Array, "W X"]
    target_starts: Int[Array, "W X"]  # where they go in the peer's rows
    receive_starts: Int[Array, "W X"]  # in this device's rows
    receive_sizes: Int[Array, "W X"]
    origin_starts: Int[Array, "W X"]  # where they come from in the peer's rows

    def back(self) -> "Slices":
        """The same rows on their way back."""
        return Slices(*self[3:], *self[:3])


class Room(NamedTuple):
    """How many rows a device can receive."""

    first: int  # in the first round
    further: int  # in each of the others
    most: int  # rounds after the first in the worst case

    def after(self, further: Int[Array, ""] | int) -> Int[Array, ""] | int:
        """Rows in the first and `further` more rounds."""
        return self.first + further * self.further


def buffer_room(num_tokens: int, per_token: int, experts_here: int, peers: int) -> Room:
    """The room if each of `peers` devices has `num_tokens` tokens with `per_token` choices each, and `experts_here`
    experts."""
    even, worst = num_tokens * per_token, peers * num_tokens * min(per_token, experts_here)
    first, further = (min(worst, -(-int(even * share) // 128) * 128) for share in (ROOM, FURTHER))
    further = max(1, further)  # a quarter of a single decoded token's rows rounds to 0
    return Room(first, further, -(-(worst - first) // further))


def all_counts(load: Int[Array, " E"]) -> Int[Array, "W W X"]:
    """Rows from each device to each expert of each device."""
    peers = axis_size("experts")
    return all_gather(load[None], "experts", 0).reshape(peers, peers, -1)


def further_rounds(counts: Int[Array, "W W X"], room: Room) -> Int[Array, ""]:
    """The number of rounds after the first until the last row has arrived; the same on all devices of a slice, so that
    none reaches its next collective while another is still in this loop."""
    left = jnp.maximum(counts.sum(axis=(0, 2)).max() - room.first, 0)
    return pmax(pmax(-(-left // room.further), "embed"), "norm_seq")


def round_slices(counts: Int[Array, "W W X"], low: Int[Array, ""] | int, rows: int, me: Int[Array, ""] | int) -> Slices:
    """Device `me`'s slices of a round in which each device receives `rows` of its rows, from row `low` on, ordered by
    its experts and then by sender."""
    sent = counts.reshape(counts.shape[0], -1)
    starts = (jnp.cumsum(sent, axis=1) - sent).reshape(counts.shape)
    received = counts.transpose(1, 2, 0).reshape(counts.shape[0], -1)
    targets = jnp.cumsum(received, axis=1) - received  # as if one round took all rows
    targets = targets.reshape(counts.shape[0], -1, counts.shape[0]).transpose(2, 0, 1)
    first = jnp.clip(targets, low, low + rows)
    sizes = jnp.clip(targets + counts, low, low + rows) - first
    starts = jnp.where(sizes > 0, starts + first - targets, 0)
    targets = jnp.where(sizes > 0, first - low, 0)
    return Slices(starts[me], sizes[me], targets[me], targets[:, me], sizes[:, me], starts[:, me])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def to_buffer(rows: Float[Array, "R ..."], slices: Slices, num_rows: int, room: int) -> Float[Array, "Q ..."]:
    """The rows that this device receives in its buffer of `room` rows; `num_rows` is the number of `rows`. On TPUs, if
    `rows` has more than one dimension, the buffer is left unwritten after the received rows: `grouped_matmul` does not
    read them, and writing zeros first took a tenth of the compiled layer's cycles."""
    return _moved(rows, slices, room, is_filled=rows.ndim == 1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def from_buffer(buffer: Float[Array, "Q ..."], slices: Slices, num_rows: int, room: int) -> Float[Array, "R ..."]:
    """The rows that this device sent, back from the receivers' buffers, zero for rows that were in no buffer: the
    transpose of `to_buffer` with the same arguments."""
    return _moved(buffer, slices.back(), num_rows, is_filled=True)


to_buffer.defvjp(
    lambda rows, slices, num_rows, room: (to_buffer(rows, slices, num_rows, room), slices),
    lambda num_rows, room, slices, grad: (from_buffer(grad, slices, num_rows, room), None),
)
from_buffer.defvjp(
    lambda buffer, slices, num_rows, room: (from_buffer(buffer, slices, num_rows, room), slices),
    lambda num_rows, room, slices, grad: (to_buffer(grad, slices, num_rows, room), None),
)


def _moved(x: Array, slices: Slices, num_rows: int, is_filled: bool) -> Array:
    if platform() == "cpu":
        return _through_blocks(x, slices, num_rows)
    shape = (num_rows, *x.shape[1:])
    out = jnp.zeros(shape, x.dtype) if is_filled or platform() != "tpu" else jax.lax.empty(shape, x.dtype)
    send_starts, send_sizes, targets, _, receive_sizes, _ = (table.reshape(-1) for table in slices)
    axes = axes_of("experts")
    return jax.lax.ragged_all_to_all(x, out, send_starts, send_sizes, targets, receive_sizes, axis_name=axes)


def block_rows(rows: int, others: int, peers: int) -> int:
    """The capacity of a block between two of `peers` devices, if `rows` are sent and at most `others` are received."""
    fewer = min(rows, others)
    return min(fewer, -(-int(fewer * BLOCK_ROOM) // peers))


def _through_blocks(x: Array, slices: Slices, num_rows: int) -> Array:
    """`_moved` without `ragged_all_to_all`: each device packs a block for every peer, blocks are exchanged, and each
    device takes its rows out of the received ones. Rows beyond a block's capacity come in a further exchange; usually
    there is none. An even load moves 1.25 times a device's rows; an all-gather would move `peers` times as many."""
    peers = slices.send_starts.shape[0]
    block = block_rows(x.shape[0], num_rows, peers)
    packed = jnp.cumsum(slices.send_sizes, axis=1) - slices.send_sizes  # where a slice begins among a peer's rows
    came = jnp.cumsum(slices.receive_sizes, axis=1) - slices.receive_sizes
    width = x.shape[0] + num_rows  # above any position at a peer, so that (peer, position) is one number
    origins = came + width * jnp.arange(peers)[:, None]
    tables = (slices.receive_starts, slices.receive_sizes, origins)
    origin, is_filled = _looked_up(jnp.arange(num_rows), *(table.reshape(-1) for table in tables))
    peer, position = origin // width, origin % width

    def turn(number: Array, out: Array) -> Array:
        own = jax.vmap(partial(_looked_up, number * block + jnp.arange(block)))
        rows, _ = own(packed, slices.send_sizes, slices.send_starts)
        arrived = all_to_all(x[rows], "experts", 0, 0).reshape(peers * block, *x.shape[1:])
        is_now = is_filled & (position // block == number)
        taken = arrived[jnp.where(is_now, peer * block + position % block, 0)]
        return jnp.where(is_now.reshape(-1, *[1] * (x.ndim - 1)), taken, out)

    turns = -(-slices.send_sizes.sum(axis=1).max() // block)
    turns = pmax(pmax(turns, "embed"), "norm_seq")  # as for `further_rounds`
    return jax.lax.fori_loop(0, turns, turn, jnp.zeros((num_rows, *x.shape[1:]), x.dtype))


def _looked_up(
    positions: Int[Array, " Q"], starts: Int[Array, " W*X"], sizes: Int[Array, " W*X"], origins: Int[Array, " W*X"]
) -> tuple[Int[Array, " Q"], Bool[Array, " Q"]]:
    """The source of each position, if slices that begin at `starts` here begin at `origins` there; and whether any
    slice contains it."""
    here = positions[:, None]
    is_in = (here >= starts) & (here < starts + sizes)
    return jnp.where(is_in, here - starts + origins, 0).sum(axis=1), is_in.any(axis=1)


def tiled(x: Float[Array, "N D"]) -> Float[Array, "N ..."]:
    """`x` with each row as 8 x 128 tiles, if its size allows: a row is then contiguous in a TPU's memory. Compiled for
    v5p with Mixtral's rows, a buffer is filled in 51 cycles a row instead of 187, and a gather compiles in 0.3 s
    instead of 3.3 s."""
    return x.reshape(x.shape[0], -1, 128) if x.shape[1] % 1024 == 0 else x


class Order(NamedTuple):
    """A permutation of rows and its inverse."""

    order: Int[Array, " R"]
    inverse: Int[Array, " R"]


def expert_order(experts: Int[Array, "N k"]) -> Order:
    """The order of the tokens' choices by expert; choices of the same expert stay in token order."""
    order = jnp.argsort(experts.reshape(-1), stable=True)
    return Order(order, jnp.argsort(order))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def to_experts(x: Float[Array, "N ..."], order: Order, copies: int) -> Float[Array, "R ..."]:
    """`copies` rows for each row of `x`, in the order of their experts."""
    return x.at[order.order // copies].get(mode="promise_in_bounds")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def to_tokens(rows: Float[Array, "R ..."], order: Order, copies: int) -> Float[Array, "N ..."]:
    """The sums, in float32, of the `copies` rows that belong to a token: the transpose of `to_experts`."""
    # One gather for each copy: a [N, copies, D] array is laid out badly on TPUs, and its sum took 3.2 M cycles for
    # Mixtral's 8192 tokens on v5p where this takes 0.3 M.
    copy_rows = order.inverse.reshape(-1, copies).T
    own = (rows.at[copy].get(mode="promise_in_bounds").astype(jnp.float32) for copy in copy_rows)
    return sum(own, start=jnp.float32(0)).astype(rows.dtype)


to_experts.defvjp(
    lambda x, order, copies: (to_experts(x, order, copies), order),
    lambda copies, order, grad: (to_tokens(grad, order, copies), None),
)
to_tokens.defvjp(
    lambda rows, order, copies: (to_tokens(rows, order, copies), order),
    lambda copies, order, grad: (to_experts(grad, order, copies), None),
)
