"""How likely given token sequences are: log p(continuation | context), and a document's total negative log-likelihood.

Sequences are cut into pieces that fit the context, and short pieces share a row by segments, so that nearly all work is
done in one compiled shape without much padding. What must hold: a piece's log-probabilities do not depend on its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Int
from lifecycle.inference.engine import ContextLengthError
from lifecycle.kernels.cross_entropy import token_logprobs
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, forward, head

SHORT_ROW = 256  # pieces up to this long share rows of this length; longer ones have rows of the next power of two
BATCH_TOKENS = 2048  # positions in one dispatch: 56 CPU-ms for 1.3 M parameters


@dataclass(frozen=True)
class Batch:
    """Packed rows: arrays `[B, T]`, and for each piece in it (its number, row, first position, length)."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    places: list[tuple[int, int, int, int]]


def loglikelihoods(
    config: ModelConfig, params: Params, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """log p(continuation | context) in nats, for each pair of at least one token each.

    Raises `ContextLengthError` if context and continuation without its last token do not fit `config.max_seq_len`.
    """
    for number, (context, continuation) in enumerate(pairs):
        size = len(context) + len(continuation) - 1
        if not context or not continuation:
            raise ValueError(f"pair {number}: context and continuation need at least one token each")
        if size > config.max_seq_len:
            raise ContextLengthError(f"pair {number}: {size} tokens; the context holds {config.max_seq_len}")
    found = piece_logprobs(config, params, [np.asarray([*context, *rest], np.int32) for context, rest in pairs])
    return [float(logprobs[len(context) - 1 :].sum()) for logprobs, (context, _) in zip(found, pairs, strict=True)]


def document_nats(
    config: ModelConfig, params: Params, documents: Sequence[np.ndarray], seq_len: int | None = None
) -> list[float]:
    """Total negative log-likelihood of each document's tokens after the first (the BOS, which is given).

    A document longer than `seq_len` (the model's context if None) is cut into windows; each begins with the last token
    of the one before, so that every token is predicted once, those after a cut with little context.
    """
    length = min(seq_len or config.max_seq_len, config.max_seq_len)
    pieces: list[np.ndarray] = []
    owners: list[int] = []
    for number, document in enumerate(documents):
        for start in range(0, len(document) - 1, length):
            pieces.append(np.asarray(document[start : start + length + 1], np.int32))
            owners.append(number)
    totals = np.zeros(len(documents))
    for owner, logprobs in zip(owners, piece_logprobs(config, params, pieces), strict=True):
        totals[owner] -= logprobs.sum()
    return totals.tolist()


def piece_logprobs(config: ModelConfig, params: Params, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities (float64) of each piece's tokens after its first."""
    found: list[np.ndarray] = [np.zeros(0)] * len(pieces)
    for batch in _pack(pieces, config.max_seq_len):
        arrays = (batch.tokens, batch.targets, batch.positions, batch.segment_ids)
        logprobs = np.asarray(_score(config, params, *arrays), np.float64)
        for piece, row, start, length in batch.places:
            found[piece] = logprobs[row, start : start + length]
    return found


@partial(jax.jit, static_argnames="config")
def _score(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T"]:
    hidden = forward(config, params, tokens, positions, segment_ids)
    return token_logprobs(hidden, head(config, params), jnp.asarray(targets))


def _row_length(length: int, max_seq_len: int) -> int:
    """The row that a piece of this many inputs goes into."""
    return min(max(SHORT_ROW, 1 << (length - 1).bit_length()), max_seq_len)


def _pack(pieces: Sequence[np.ndarray], max_seq_len: int) -> list[Batch]:
    """Longest first, each piece into the fullest row of its length that has room (best-fit decreasing)."""
    rows: dict[int, list[list[int]]] = {}  # row length -> rows of piece numbers
    by_room: dict[tuple[int, int], list[list[int]]] = {}  # (row length, positions left) -> rows
    for number in sorted(range(len(pieces)), key=lambda i: -len(pieces[i])):
        size = len(pieces[number]) - 1
        length = _row_length(size, max_seq_len)
        room = next((left for left in range(size, length + 1) if by_room.get((length, left))), None)
        if room is None:
            row, room = [], length
            rows.setdefault(length, []).append(row)
        else:
            row = by_room[length, room].pop()
        row.append(number)
        by_room.setdefault((length, room - size), []).append(row)
    batches: list[Batch] = []
    for length, packed in rows.items():
        height = max(1, BATCH_TOKENS // length)
        batches += [_batch(pieces, packed[i : i + height], height, length) for i in range(0, len(packed), height)]
    return batches


def _batch(pieces: Sequence[np.ndarray], packed: Sequence[Sequence[int]], height: int, length: int) -> Batch:
    tokens, targets, positions, segment_ids = np.zeros((4, height, length), np.int32)
    batch = Batch(tokens, targets, positions, segment_ids, [])
    for row, numbers in enumerate(packed):
        start = 0
        for segment, number in enumerate(numbers, 1):
            piece = pieces[number]
            place = np.s_[row, start : start + len(piece) - 1]
            batch.tokens[place], batch.targets[place] = piece[:-1], piece[1:]
            batch.positions[place], batch.segment_ids[place] = np.arange(len(piece) - 1), segment
            batch.places.append((number, row, start, len(piece) - 1))
            start += len(piece) - 1
    return batch
