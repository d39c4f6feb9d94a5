"""Rows of a fixed length, and complete units packed into them: fine-tuning rows here, groups of answers elsewhere.

A row source returns `row(index)` for any index from 0 on; row `index` belongs to epoch `index // num_rows`. It is pure
index arithmetic on a seeded permutation, independent of hosts, threads and time: any process may request any row in any
order. What must hold: an epoch contains everything exactly once.

`DocumentRows` (`training/document_rows.py`) cuts documents. `ExampleRows` and `GroupRows` (`training/group_rows.py`)
pack complete units by best-fit decreasing (Johnson 1973; for language models Ding et al. 2024, "Fewer Truncations
Improve Language Modeling").
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from lifecycle.core.config import digest

type Row = dict[str, np.ndarray]  # [T] arrays of the batch contract, and a source's own


class RowSource(Protocol):
    """A source of rows. `fingerprint` changes with anything that changes a row."""

    @property
    def num_rows(self) -> int:
        """Rows of one epoch; the same for all epochs."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the rows and their order; a resumed run must have the same one."""
        ...

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        ...

    @property
    def phase(self) -> Mapping[str, Any]:
        """The settings of the rows that may change within a run, JSON-ready; empty if none may."""
        ...

    def contents(self, index: int) -> dict[str, Any]:
        """What that row was made from, JSON-ready: for people, who look for what was wrong with it."""
        ...

    def after(self, past: Sequence[Mapping[str, Any]]) -> "RowSource":
        """The rows of the same data and settings, after others: `past` has phases, each with `rows`, how many of its
        rows were read, and `source`, their fingerprint. Raises `DataStateError` if those were of other data."""
        ...


class FixedRows:
    """What row sources have in common whose rows stay the same within a run."""

    phase: Mapping[str, Any] = {}

    def after(self, past: Sequence[Mapping[str, Any]]) -> Self:
        """These rows; none come before them."""
        assert not past, "rows without a phase have no past"
        return self


class MaskedIds(Protocol):
    """One encoded row: ids and, for each, whether it is a target (`text.rows.EncodedRow`)."""

    @property
    def ids(self) -> Sequence[int]:
        """The token ids."""
        ...

    @property
    def loss_mask(self) -> Sequence[bool]:
        """For each id, whether it is a target."""
        ...


class DataStateError(ValueError):
    """A checkpoint's data state belongs to other data than this run's."""


class PackingError(ValueError):
    """Units that cannot be packed into rows."""


def permutation(seed: int, epoch: int, purpose: str, size: int) -> np.ndarray:
    """A permutation of `range(size)` that depends only on the arguments.

    Argsort of a raw Philox stream: NumPy keeps bit streams stable between versions, but not `Generator.permutation`.
    """
    stream = np.random.SeedSequence([seed, epoch, *purpose.encode()])
    return np.argsort(np.random.Philox(stream).random_raw(size), kind="stable")


def empty_row(row: Row) -> Row:
    """Padding in the shapes of `row`: segment 0 and no loss everywhere."""
    return {name: np.zeros_like(array) for name, array in row.items()}


class PerEpoch[P]:
    """The plans of the epochs in use: two, since prefetching crosses an epoch's end. Thread-safe."""

    def __init__(self, make: Callable[[int], P]) -> None:
        self._make = make
        self._plans: dict[int, P] = {}
        self._lock = threading.Lock()

    def __call__(self, epoch: int) -> P:
        """The plan of an epoch, made on first use."""
        with self._lock:
            if epoch not in self._plans:
                self._plans = {known: plan for known, plan in self._plans.items() if known == epoch - 1}
                self._plans[epoch] = self._make(epoch)
            return self._plans[epoch]


def next_token_row(tokens: np.ndarray, segments: np.ndarray) -> Row:
    """A row of T positions from T + 1 tokens and their segments; each position learns the next token of its segment."""
    inside = (segments[1:] == segments[:-1]) & (segments[:-1] > 0)
    segments, tokens, following = segments[:-1], tokens[:-1], tokens[1:]
    index = np.arange(len(segments), dtype=np.int32)
    begins = np.concatenate([[True], segments[1:] != segments[:-1]])
    positions = index - np.maximum.accumulate(np.where(begins, index, 0))
    return {
        "tokens": tokens,
        "targets": np.where(inside, following, 0).astype(np.int32),
        "positions": np.where(segments > 0, positions, 0).astype(np.int32),
        "segment_ids": segments,
        "loss_mask": inside.astype(np.float32),
    }


class PackedUnits:
    """Units of given lengths packed into rows without cutting them.

    Best-fit decreasing depends on the lengths only, so all epochs have the same layout; which of the units of equal
    length goes where, and the order of rows, are permuted in each epoch.
    """

    def __init__(self, lengths: Sequence[int], seq_len: int, seed: int) -> None:
        if not lengths:
            raise PackingError("no rows to pack")
        self._lengths, self._seed = np.asarray(lengths, np.int64), seed
        if (longest := int(self._lengths.max())) > seq_len:
            unit = int(self._lengths.argmax())
            raise PackingError(
                f"row {unit} has {longest} tokens and seq_len is {seq_len}; drop such rows before packing"
            )
        self._ranks = best_fit_decreasing(sorted(lengths, reverse=True), seq_len)
        self._plan = PerEpoch(self._make_plan)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._ranks)

    @property
    def max_units(self) -> int:
        """The most units in a row."""
        return max(map(len, self._ranks))

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(units by decreasing length, rows in order)."""
        ties = permutation(self._seed, epoch, "units", len(self._lengths))
        return np.lexsort((ties, -self._lengths)), permutation(self._seed, epoch, "rows", self.num_rows)

    def units(self, index: int) -> list[int]:
        """The units in row `index`, in order."""
        epoch, slot = divmod(index, self.num_rows)
        by_length, rows = self._plan(epoch)
        return [int(by_length[rank]) for rank in self._ranks[int(rows[slot])]]


def num_packed_rows(lengths: Sequence[int], seq_len: int) -> int:
    """How many rows units of these lengths are packed into."""
    return len(best_fit_decreasing(sorted(lengths, reverse=True), seq_len))


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs decreasing `lengths` into bins: each goes to the fullest bin with room for it. Returns indices per bin.

    The free capacities are the set bits of one integer, so that a shift and the lowest set bit give the best fit.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0
    for index, length in enumerate(lengths):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        by_room.setdefault(room - length, []).append(chosen)
        rooms |= 1 << (room - length)
    return bins


def units_in_rows(lengths: Sequence[int], seq_len: int, num_rows: int, what: str) -> list[list[int]]:
    """Which units are in each of at most `num_rows` rows, by number. Raises `PackingError` if they do not fit; `what`
    the units are."""
    order = sorted(range(len(lengths)), key=lambda unit: -lengths[unit])
    bins = best_fit_decreasing([lengths[unit] for unit in order], seq_len)
    if len(bins) > num_rows:
        raise PackingError(f"{len(lengths)} {what} need {len(bins)} rows of {seq_len} positions, not {num_rows}")
    return [[order[place] for place in places] for places in bins]


def stacked(rows: Sequence[Row], num_rows: int, grad_accum: int = 1) -> dict[str, np.ndarray]:
    """Rows as a batch of `num_rows`; empty ones are those of a step's last micro-batches (`training/step.py`)."""
    rows = [*rows, *[empty_row(rows[0])] * (num_rows - len(rows))]
    places = np.argsort(np.arange(num_rows).reshape(-1, grad_accum).T.reshape(-1))
    return {name: np.stack([rows[place][name] for place in places]) for name in rows[0]}


def packed_examples(
    examples: Sequence[MaskedIds], seq_len: int, num_rows: int, grad_accum: int = 1
) -> dict[str, np.ndarray]:
    """Examples in exactly `num_rows` rows, `[num_rows, T]`, `stacked`. Raises `PackingError` if they do not fit."""
    listed = units_in_rows([len(example.ids) for example in examples], seq_len, num_rows, "examples")
    return stacked([packed_row([examples[unit] for unit in units], seq_len) for units in listed], num_rows, grad_accum)


class ExampleRows(FixedRows):
    """Fine-tuning rows, packed without cutting; a position has loss if its target is in the loss mask. `name`: what
    people know an example by; its number, counted from 0, unless the caller knows better."""

    def __init__(
        self, examples: Sequence[MaskedIds], seq_len: int, seed: int, name: Callable[[int], str] = str
    ) -> None:
        self._examples, self._seq_len, self._name = examples, seq_len, name
        self._packed = PackedUnits([len(example.ids) for example in examples], seq_len, seed)
        learned = [int(np.count_nonzero(example.loss_mask[1:])) for example in examples]
        self._first_learned = np.concatenate([[0], np.cumsum(learned)])  # of each example's, counted over all
        self.fingerprint = digest(["examples", seq_len, seed, hash_examples(examples)])

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._packed.num_rows

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        return packed_row([self._examples[unit] for unit in self._packed.units(index)], self._seq_len)

    @property
    def num_learned(self) -> int:
        """How many tokens of an epoch are learned."""
        return int(self._first_learned[-1])

    def learned(self, index: int) -> np.ndarray:
        """The numbers of a row's learned tokens, in their order there, counted over all examples."""
        first, units = self._first_learned, self._packed.units(index)
        return np.concatenate([np.arange(first[unit], first[unit + 1]) for unit in units])

    def contents(self, index: int) -> dict[str, Any]:
        """Which examples are in the row, by name."""
        return {"examples": list(map(self._name, self._packed.units(index)))}


def packed_row(examples: Sequence[MaskedIds], seq_len: int) -> Row:
    """Concatenates examples, each as a segment, and pads the row."""
    tokens, segments, learned = (np.zeros(seq_len + 1, np.int32) for _ in range(3))
    begin = 0
    for segment, example in enumerate(examples, 1):
        end = begin + len(example.ids)
        tokens[begin:end] = example.ids
        segments[begin:end] = segment
        learned[begin:end] = example.loss_mask
        begin = end
    row = next_token_row(tokens, segments)
    row["loss_mask"] *= learned[1:]
    return row


def hash_examples(examples: Iterable[MaskedIds]) -> str:
    """A hash of ids and masks, in order."""
    total = hashlib.sha256()
    for example in examples:
        total.update(len(example.ids).to_bytes(8, "little"))
        total.update(np.asarray(example.ids, "<i8").tobytes() + bytes(example.loss_mask))
    return total.hexdigest()
