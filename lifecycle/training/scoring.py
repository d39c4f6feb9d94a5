"""Likelihoods of given token sequences: log p(continuation | context), and a document's total negative log-likelihood.

Sequences are cut into pieces that fit the context, and short pieces share a row as segments, so that nearly all work
runs in one compiled shape with little padding. Rows run on the mesh that the weights are sharded over, in the same
manual `shard_map` as a step. What must hold: a piece's log-probabilities depend neither on its row nor on the mesh.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch, Float, Int
from lifecycle.kernels.token_statistics import token_logprobs
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import head
from lifecycle.model.params import Params, logical_axes
from lifecycle.model.pipeline import own_rows
from lifecycle.model.weight_formats import axes_in_use
from lifecycle.parallel.axes import RULES
from lifecycle.parallel.mesh import AnyMesh, spec, tree_specs
from lifecycle.parallel.placement import in_plain_order, on_mesh, shard_batch

# Positions per dispatch on each device that has its own rows: 56 CPU-ms for 1.3 M parameters.
BATCH_TOKENS = 2048
# Pieces up to this long share rows of this length; longer ones have rows of the next power of two. On a CPU attention
# costs a row's square; elsewhere padding costs less than one more program to compile.
SHORT_ROW = {"cpu": 256}


# From this device's final hidden states and targets to `[B, T]` or `[B, T, values]`: what is measured at each target.
type Measure = Callable[[ModelConfig, Params, Array, Array], Array]


@dataclass(frozen=True)
class PieceBatch:
    """Rows of one length: arrays `[B, T]`, and for each piece in them its number, row, first position and length."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    spans: list[tuple[int, int, int, int]]

    @property
    def batch(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ("tokens", "targets", "positions", "segment_ids")}


@dataclass(frozen=True)
class RowShapes:
    """Row shapes that divide over a mesh: the number of rows by `num_shards`, their length by `unit`."""

    num_shards: int
    unit: int
    shortest: int

    @classmethod
    def of(cls, mesh: Mesh) -> "RowShapes":
        """The row shapes for a mesh and its kind of device."""
        num_shards, context = math.prod(mesh.shape[axis] for axis in RULES["loss_rows"]), mesh.shape["context"]
        unit = (2 * context if context > 1 else 1) * mesh.shape["tensor"]
        return cls(num_shards, unit, SHORT_ROW.get(mesh.devices.flat[0].platform, BATCH_TOKENS))

    def length(self, size: int, longest: int) -> int:
        """The length of the row for a piece of `size` inputs, if no piece is longer than `longest`."""
        length = min(max(self.shortest, 1 << (size - 1).bit_length()), longest)
        return -(-length // self.unit) * self.unit

    def height(self, length: int) -> int:
        """The number of rows of this length in a batch."""
        return self.num_shards * max(1, BATCH_TOKENS // length)


def loglikelihoods(
    config: ModelConfig, params: Params, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], mesh: Mesh
) -> list[float]:
    """log p(continuation | context) in nats, for each pair of at least one token each; `params` are on `mesh`.

    Raises what `measured_continuations` raises.
    """
    return [float(values.sum()) for values in measured_continuations(logprobs, config, params, pairs, mesh)]


def measured_continuations(
    measure: Measure,
    config: ModelConfig,
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    mesh: Mesh,
) -> list[np.ndarray]:
    """What is measured at each token of the continuations after their contexts; `params` are on `mesh`.

    Raises `ValueError` if context and continuation without its last token do not fit `config.max_seq_len`.
    """
    pieces = pair_pieces(config, pairs)
    measured = measured_pieces(measure, config, params, pieces, config.max_seq_len, mesh)
    return of_continuations(measured, pairs)


def pair_pieces(config: ModelConfig, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
    """Each context with its continuation as one piece. Raises what `measured_continuations` raises."""
    for number, (context, continuation) in enumerate(pairs):
        size = len(context) + len(continuation) - 1
        if not context or not continuation:
            raise ValueError(f"pair {number}: context and continuation need at least one token each")
        if size > config.max_seq_len:
            raise ValueError(f"pair {number}: {size} tokens; the context holds {config.max_seq_len}")
    return [np.asarray([*context, *rest], np.int32) for context, rest in pairs]


def of_continuations(
    measured: Sequence[np.ndarray], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[np.ndarray]:
    """What was measured at the continuations' tokens, of what was measured in the pairs' pieces."""
    return [values[len(context) - 1 :] for values, (context, _) in zip(measured, pairs, strict=True)]


def document_nats(
    config: ModelConfig, params: Params, documents: Sequence[np.ndarray], seq_len: int, mesh: Mesh
) -> list[float]:
    """The total negative log-likelihood of each document's tokens after the first (the BOS, which is given).

    A document longer than `seq_len` is cut into windows; each starts with the last token of the previous one, so that
    every token is predicted once, those after a cut with little context. `params` are sharded over `mesh`.
    """
    owners, pieces = document_pieces(documents, seq_len)
    return nats_of(len(documents), owners, measured_pieces(logprobs, config, params, pieces, seq_len, mesh))


def document_pieces(documents: Sequence[np.ndarray], seq_len: int) -> tuple[list[int], list[np.ndarray]]:
    """(the number of each piece's document, the pieces): windows of `seq_len` targets, the last of each shorter."""
    windows = [(number, start) for number, ids in enumerate(documents) for start in range(0, len(ids) - 1, seq_len)]
    pieces = [np.asarray(documents[number][start : start + seq_len + 1], np.int32) for number, start in windows]
    return [number for number, _ in windows], pieces


def nats_of(num: int, owners: Sequence[int], measured: Sequence[np.ndarray]) -> list[float]:
    """The total negative log-likelihood of each of `num` documents, from the log-probabilities in its pieces."""
    totals = np.zeros(num)
    for owner, values in zip(owners, measured, strict=True):
        totals[owner] -= values.sum()
    return totals.tolist()


def measured_pieces(
    measure: Measure,
    config: ModelConfig,
    params: Params,
    pieces: Sequence[np.ndarray],
    longest: int,
    mesh: Mesh,
) -> list[np.ndarray]:
    """What is measured (float64) at each piece's tokens after its first; no piece has more than `longest` of them.

    Every process of the job makes the same call and gets all results.
    """
    results: list[np.ndarray] = [np.zeros(0)] * len(pieces)
    for packed in _pack(pieces, longest, RowShapes.of(mesh)):
        _measure_batch(measure, config, params, packed, mesh, results)
    return results


class PackedPieces:
    """Pieces in rows of one length, packed once and measured again and again, by one program. All pieces with the same
    measure, model, mesh and row length share it."""

    def __init__(
        self, measure: Measure, config: ModelConfig, pieces: Sequence[np.ndarray], length: int, mesh: Mesh
    ) -> None:
        """`length`: of `row_length`, for these pieces or for more."""
        self._measure, self._config, self._mesh, self._num = measure, config, mesh, len(pieces)
        self._batches = _pack(pieces, length, replace(RowShapes.of(mesh), shortest=length))

    def prepare(self, params: Params) -> None:
        """Compiles the program and runs it once, so that too little memory is found too."""
        _measure_batch(self._measure, self._config, params, self._batches[0], self._mesh, self._results())

    def measured(self, params: Params) -> list[np.ndarray]:
        """As `measured_pieces`."""
        results = self._results()
        for packed in self._batches:
            _measure_batch(self._measure, self._config, params, packed, self._mesh, results)
        return results

    def _results(self) -> list[np.ndarray]:
        return [np.zeros(0)] * self._num


def row_length(pieces: Iterable[np.ndarray], longest: int, mesh: Mesh) -> int:
    """The length of the rows that hold all pieces, if none has more than `longest` targets."""
    return RowShapes.of(mesh).length(max(len(piece) - 1 for piece in pieces), longest)


def _measure_batch(
    measure: Measure, config: ModelConfig, params: Params, packed: PieceBatch, mesh: Mesh, results: list[np.ndarray]
) -> None:
    """Puts what is measured in a batch's pieces into `results`."""
    measured = jax.device_get(measured_rows(measure, config, mesh, params, shard_batch(packed.batch, mesh)))
    values = in_plain_order(measured, mesh.shape["context"]).astype(np.float64)
    for piece, row, start, length in packed.spans:
        results[piece] = values[row, start : start + length]


@partial(jax.jit, static_argnames=("measure", "config", "mesh"))
def measured_rows(
    measure: Measure, config: ModelConfig, mesh: AnyMesh, params: Params, batch: Batch
) -> Float[Array, "B T ..."]:
    """What is measured at every position of a batch from `shard_batch`, replicated; positions stay in `shard_batch`'s
    order."""

    def local(params: Params, batch: Batch) -> Array:
        hidden = forward(config, params, batch["tokens"], batch["positions"], batch["segment_ids"])
        return measure(config, params, hidden, own_rows(batch["targets"]))

    specs = tree_specs(axes_in_use(logical_axes(config), params))
    values = on_mesh(local, mesh, specs, spec("loss_rows", "seq"))(params, batch)
    return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, P()))


def logprobs(
    config: ModelConfig, params: Params, hidden: Float[Array, "B t D"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """The `Measure` of likelihoods: each target's log-probability."""
    return token_logprobs(hidden, head(config, params), targets, config.logits_soft_cap)


def _pack(pieces: Sequence[np.ndarray], longest: int, shapes: RowShapes) -> list[PieceBatch]:
    """Packs pieces, longest first, each into the fullest row of its length with enough room (best-fit decreasing)."""
    rows: dict[int, list[list[int]]] = {}  # row length -> rows of piece numbers
    by_room: dict[tuple[int, int], list[list[int]]] = {}  # (row length, positions left) -> rows
    for number in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):
        size = len(pieces[number]) - 1
        length = shapes.length(size, longest)
        room = next((left for left in range(size, length + 1) if by_room.get((length, left))), None)
        if room is None:
            row, room = [], length
            rows.setdefault(length, []).append(row)
        else:
            row = by_room[length, room].pop()
        row.append(number)
        by_room.setdefault((length, room - size), []).append(row)
    batches: list[PieceBatch] = []
    for length, packed in rows.items():
        height = shapes.height(length)
        batches += [_batch(pieces, packed[i : i + height], height, length) for i in range(0, len(packed), height)]
    return batches


def _batch(pieces: Sequence[np.ndarray], packed: Sequence[Sequence[int]], height: int, length: int) -> PieceBatch:
    tokens, targets, positions, segment_ids = np.zeros((4, height, length), np.int32)
    batch = PieceBatch(tokens, targets, positions, segment_ids, [])
    for row, numbers in enumerate(packed):
        start = 0
        for segment, number in enumerate(numbers, 1):
            piece = pieces[number]
            span = np.s_[row, start : start + len(piece) - 1]
            batch.tokens[span], batch.targets[span] = piece[:-1], piece[1:]
            batch.positions[span], batch.segment_ids[span] = np.arange(len(piece) - 1), segment
            batch.spans.append((number, row, start, len(piece) - 1))
            start += len(piece) - 1
    return batch
