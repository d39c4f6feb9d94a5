"""Rows packed from groups of `k` segments: preference pairs (2), answers with a label or an advantage (1).

A group never crosses rows, so what is summed over its segments is in one row. In a row of up to `P` groups, segment `j`
of group `g` has the id `g * k + j + 1`. Beside the columns of every row there are

| column | shape | what |
|---|---|---|
| `group_mask`, `group_ids` | `[P]` | 1 for a group; its number |
| `target_mask` | `[T]` | 1 where a token has a next one in its segment, learned or not |
| `answer_positions` | `[T]` | of a learned target: its number in its segment, from 1 on; else 0 |
| a group's values | `[P, k]` | by their names |

and for groups that have `others`, a second set of the token columns, with `other_` before their names: sequences that
are measured beside the segments and not learned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lifecycle.core.config import digest
from lifecycle.parallel.columns import TOKEN_COLUMNS, declare
from lifecycle.training.packing import (
    FixedRows,
    MaskedIds,
    PackedUnits,
    PackingError,
    Row,
    hash_examples,
    packed_row,
    stacked,
    units_in_rows,
)

OTHER = "other_"  # before the columns of sequences that are measured and not learned
OWN_TOKEN_COLUMNS = ("target_mask", "answer_positions")
declare("segment", "group_mask", "group_ids")
declare("token", *OWN_TOKEN_COLUMNS, *(OTHER + name for name in (*TOKEN_COLUMNS, *OWN_TOKEN_COLUMNS)))


@dataclass(frozen=True)
class Group:
    """Segments that belong together, values for each of them by name, and sequences beside them: as many, or none."""

    segments: Sequence[MaskedIds]
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    others: Sequence[MaskedIds] = ()

    @property
    def length(self) -> int:
        """Positions of a row that it needs."""
        return max(sum(len(part.ids) for part in parts) for parts in (self.segments, self.others))


class GroupRows(FixedRows):
    """Rows of whole groups, all with the same number of segments and the same values. `name`: as in `ExampleRows`."""

    def __init__(self, groups: Sequence[Group], seq_len: int, seed: int, name: Callable[[int], str] = str) -> None:
        self._groups, self._seq_len, self._name = groups, seq_len, name
        self._packed = PackedUnits([group.length for group in groups], seq_len, seed)
        kinds = {(len(group.segments), len(group.others), tuple(sorted(group.values))) for group in groups}
        if len(kinds) > 1:
            raise PackingError(f"groups differ in (segments, others, values): {sorted(kinds)}; make them alike")
        self.size, _, self._values = kinds.pop()
        of_ids = hash_examples(part for group in groups for parts in (group.segments, group.others) for part in parts)
        values = [[list(group.values[value]) for value in self._values] for group in groups]
        self.fingerprint = digest(["groups", self.size, seq_len, seed, of_ids, self._values, values])
        for value in self._values:
            declare("segment", value)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._packed.num_rows

    @property
    def num_groups(self) -> int:
        """Groups of an epoch."""
        return len(self._groups)

    @property
    def max_groups(self) -> int:
        """`P`: the length of a row's `group_mask`."""
        return self._packed.max_units

    @property
    def has_others(self) -> bool:
        """Whether rows have sequences that are measured beside the segments."""
        return bool(self._groups[0].others)

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        units = self._packed.units(index)
        return _row([self._groups[unit] for unit in units], units, self._seq_len, self.max_groups)

    def contents(self, index: int) -> dict[str, Any]:
        """Which groups are in the row, by name."""
        return {"rows": list(map(self._name, self._packed.units(index)))}


def packed_groups(groups: Sequence[Group], seq_len: int, num_rows: int, grad_accum: int = 1) -> dict[str, np.ndarray]:
    """Groups in exactly `num_rows` rows, `[num_rows, ...]`, `stacked`; `P` is the number of groups. Raises
    `PackingError` if they do not fit."""
    listed = units_in_rows([group.length for group in groups], seq_len, num_rows, "groups")
    rows = [_row([groups[unit] for unit in units], units, seq_len, len(groups)) for units in listed]
    return stacked(rows, num_rows, grad_accum)


def _row(groups: Sequence[Group], numbers: Sequence[int], seq_len: int, width: int) -> Row:
    row = _with_own_columns(packed_row([part for group in groups for part in group.segments], seq_len))
    if groups[0].others:
        others = _with_own_columns(packed_row([part for group in groups for part in group.others], seq_len))
        row |= {OTHER + name: column for name, column in others.items()}
    row["group_mask"] = _padded(np.ones(len(groups), np.float32), width)
    row["group_ids"] = _padded(np.array(numbers, np.int32), width)
    for value in sorted(groups[0].values):
        row[value] = _padded(np.array([group.values[value] for group in groups], np.float32), width)
    return row


def _with_own_columns(row: Row) -> Row:
    """With `target_mask` and `answer_positions`."""
    segments, learned = row["segment_ids"], row["loss_mask"] > 0
    follows = np.append(segments[1:] == segments[:-1], False) & (segments > 0)
    before = np.concatenate([[0], np.cumsum(learned)])
    begins = np.maximum.accumulate(np.where(row["positions"] == 0, np.arange(len(segments)), 0))
    numbers = before[1:] - before[begins]
    return row | {
        "target_mask": follows.astype(np.float32),
        "answer_positions": np.where(learned, numbers, 0).astype(np.int32),
    }


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])
