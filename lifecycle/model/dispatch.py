"""How tokens reach their experts' devices and come back.

Rows (one for each token and expert of its choice) are sorted by expert, so by device too. Every device learns every
other's counts and so knows where each of its slices belongs in the receiver's buffer, sorted by expert and then by
sender: what arrives needs no further sorting. On TPUs and GPUs a slice is written to its place by
`jax.lax.ragged_all_to_all`, which moves the rows that there are and nothing else. XLA has none for CPUs: there every
device gathers all rows and picks its own.

A receiver's buffer has a fixed number of rows. Rows beyond it come in a further round, so nothing is ever dropped and
no buffer is sized for the worst case, which is as many times the even load as there are devices. What must hold: the
gradient of a move is the move back, and of sorting the undoing of it; both are gathers, no scatter.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.collectives import axes_of, gather, maximum, ways
from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int

# Rows of a receiver's buffer, in units of an even load. A second round reads all expert weights once more, so it should
# be rare; but the largest arrays of the layer have this many rows, and so has the elementwise work on them.
ROOM = 1.25


class Slices(NamedTuple):
    """Where the rows of a round lie, for each peer and each expert: `[peers, experts of one device]`."""

    send_starts: Int[Array, "W X"]  # in this device's rows
    send_sizes: Int[Array, "W X"]
    target_starts: Int[Array, "W X"]  # where they go in the peer's
    receive_starts: Int[Array, "W X"]  # in this device's rows
    receive_sizes: Int[Array, "W X"]
    origin_starts: Int[Array, "W X"]  # where they come from in the peer's

    def back(self) -> "Slices":
        """The same rows on their way back."""
        return Slices(*self[3:], *self[:3])


def buffer_rows(num_tokens: int, per_token: int, experts_here: int, peers: int) -> tuple[int, int]:
    """(rows that a device receives in a round at most, rounds in the worst case), where each of `peers` devices has
    `num_tokens` tokens with `per_token` choices each, and `experts_here` experts."""
    worst = peers * num_tokens * min(per_token, experts_here)
    rows = min(worst, -(-int(num_tokens * per_token * ROOM) // 128) * 128)
    return rows, -(-worst // rows)


def all_counts(load: Int[Array, " E"]) -> Int[Array, "W W X"]:
    """Rows from each device to each expert of each device."""
    peers = ways("experts")
    return gather(load[None], "experts", 0).reshape(peers, peers, -1)


def rounds_needed(counts: Int[Array, "W W X"], rows: int) -> Int[Array, ""]:
    """Rounds until the last row has come; the same on all devices of a slice, so that none goes on to its next
    collective while its neighbour is in this loop."""
    rounds = -(-counts.sum(axis=(0, 2)).max() // rows)
    return maximum(maximum(rounds, "embed"), "norm_seq")


def round_slices(counts: Int[Array, "W W X"], number: Array | int, rows: int, me: Array | int) -> Slices:
    """Device `me`'s slices of round `number`, in which each device receives rows `number * rows` up to
    `(number + 1) * rows` of all that it is sent, in the order of its experts and then of the senders."""
    sent = counts.reshape(counts.shape[0], -1)
    starts = (jnp.cumsum(sent, axis=1) - sent).reshape(counts.shape)
    received = counts.transpose(1, 2, 0).reshape(counts.shape[0], -1)
    places = jnp.cumsum(received, axis=1) - received
    places = places.reshape(counts.shape[0], -1, counts.shape[0]).transpose(2, 0, 1)
    low, high = number * rows, (number + 1) * rows
    first = jnp.clip(places, low, high)
    sizes = jnp.clip(places + counts, low, high) - first
    starts = jnp.where(sizes > 0, starts + first - places, 0)
    targets = jnp.where(sizes > 0, first - low, 0)
    return Slices(starts[me], sizes[me], targets[me], targets[:, me], sizes[:, me], starts[:, me])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def to_buffer(rows: Float[Array, "R ..."], slices: Slices, num_rows: int, room: int) -> Float[Array, "Q ..."]:
    """What this device receives in its buffer of `room` rows; `num_rows` is the number of `rows`. On TPUs an array of
    more than one dimension is left unwritten behind the received rows, for `grouped_matmul` reads none of them: to
    write zeros first took a tenth of the compiled layer's cycles."""
    return _moved(rows, slices, room, is_filled=rows.ndim == 1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def from_buffer(buffer: Float[Array, "Q ..."], slices: Slices, num_rows: int, room: int) -> Float[Array, "R ..."]:
    """The rows of this device that others had in their buffers, zero for those that no buffer had: the transpose of
    `to_buffer` with the same arguments."""
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
        return _picked(x, slices, num_rows)
    shape = (num_rows, *x.shape[1:])
    out = jnp.zeros(shape, x.dtype) if is_filled or platform() != "tpu" else jax.lax.empty(shape, x.dtype)
    send_starts, send_sizes, targets, _, receive_sizes, _ = (table.reshape(-1) for table in slices)
    axes = axes_of("experts")
    return jax.lax.ragged_all_to_all(x, out, send_starts, send_sizes, targets, receive_sizes, axis_name=axes)


def _picked(x: Array, slices: Slices, rows: int) -> Array:
    """The same without `ragged_all_to_all`: row `j` is the one among all devices' rows that was sent to it."""
    everything = gather(x, "experts", 0)
    peers = jnp.arange(slices.receive_starts.shape[0])[:, None]
    sources = (peers * x.shape[0] + slices.origin_starts - slices.receive_starts).reshape(-1)
    starts, sizes = slices.receive_starts.reshape(-1), slices.receive_sizes.reshape(-1)
    here = jnp.arange(rows)[:, None]
    is_from = (here >= starts) & (here < starts + sizes)
    source = jnp.where(is_from, sources + here, 0).sum(axis=1)
    is_filled = is_from.any(axis=1).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(is_filled, everything[source], 0)


def tiled(x: Float[Array, "N D"]) -> Float[Array, "N ..."]:
    """`x` with rows of whole 8 x 128 tiles, where they are: then a row lies in one piece in a TPU's memory. Compiled
    for v5p with Mixtral's rows, a buffer is filled in 51 cycles a row instead of 187, and a gather compiles in 0.3 s
    instead of 3.3 s."""
    return x.reshape(x.shape[0], -1, 128) if x.shape[1] % 1024 == 0 else x


class Order(NamedTuple):
    """A permutation of rows and its inverse."""

    order: Int[Array, " R"]
    inverse: Int[Array, " R"]


def expert_order(experts: Int[Array, "N k"]) -> Order:
    """The order of a token's choices by expert; choices of the same expert stay in the tokens' order."""
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
    places = order.inverse.reshape(-1, copies).T
    own = (rows.at[place].get(mode="promise_in_bounds").astype(jnp.float32) for place in places)
    return sum(own, start=jnp.float32(0)).astype(rows.dtype)


to_experts.defvjp(
    lambda x, order, copies: (to_experts(x, order, copies), order),
    lambda copies, order, grad: (to_tokens(grad, order, copies), None),
)
to_tokens.defvjp(
    lambda rows, order, copies: (to_tokens(rows, order, copies), order),
    lambda copies, order, grad: (to_experts(grad, order, copies), None),
)
