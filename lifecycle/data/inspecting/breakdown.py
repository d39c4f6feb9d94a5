"""Documents, bytes, tokens and edits by source, licence, language and outcome, and removals by reason.

What must hold: every document is in exactly one cell of the breakdown, so its sums over any column are the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

KINDS = ("source", "license", "language")  # columns that documents are counted by
REASONS = "reasons"  # a document's removals: a list of (step, reason, detail)

type Amounts = NDArray[np.int64]


class Cell(NamedTuple):
    """Documents that are counted together. `outcome`: kept, heldout, or the step that removed them."""

    source: str
    license: str
    language: str
    outcome: str


class Breakdown:
    """Amounts by cell: documents, bytes, tokens, then of each column of edits how many, and in how many documents."""

    def __init__(self, edits: Sequence[str]) -> None:
        self.edits = tuple(edits)
        self._cells: dict[Cell, Amounts] = defaultdict(lambda: np.zeros(3 + 2 * len(edits), np.int64))

    def add(self, rows: pa.RecordBatch, outcomes: pa.Array, tokens: NDArray[np.int64]) -> None:
        """Counts documents, with the outcome, as in `Cell`, and the tokens of each."""
        edits = [rows[name].fill_null(0) for name in self.edits]
        amounts = [pa.array(np.ones_like(tokens)), rows["text_bytes"], pa.array(tokens), *edits]
        amounts += [pa.array((edit.to_numpy() > 0).astype(np.int64)) for edit in edits]
        names = list(map(str, range(len(amounts))))
        kinds = [rows[name].fill_null("") for name in KINDS]
        table = pa.table([*kinds, outcomes, *amounts], [*Cell._fields, *names])
        grouped = table.group_by(list(Cell._fields), use_threads=False).aggregate([(name, "sum") for name in names])
        sums = np.stack([grouped[f"{name}_sum"].to_numpy() for name in names], axis=1)
        for cell, of_cell in zip(grouped.select(Cell._fields).to_pylist(), sums, strict=True):
            self._cells[Cell(**cell)] += of_cell

    def by[Key](self, key: Callable[[Cell], Key]) -> dict[Key, Amounts]:
        """The amounts of all cells with the same key."""
        sums: dict[Key, Amounts] = {}
        for cell, amounts in self._cells.items():
            sums[key(cell)] = sums.get(key(cell), 0) + amounts
        return sums

    def tokens_by[Key](self, key: Callable[[Cell], Key]) -> dict[Key, float]:
        """An estimate of the tokens of all cells with the same key. Those of documents that are kept or held out are
        counted; removed ones were never tokenised: they have as many a byte as the kept text of their source, and of a
        source that has none, as all kept text."""
        kept = self.by(lambda cell: cell.source if cell.outcome == "kept" else None)
        kept.pop(None, None)
        rates = {source: int(of[2]) / int(of[1]) for source, of in kept.items() if of[1]}
        of_all = sum(int(of[2]) for of in kept.values()) / max(1, sum(int(of[1]) for of in kept.values()))
        sums: dict[Key, float] = {}
        for cell, amounts in self._cells.items():
            is_counted = cell.outcome in ("kept", "heldout")
            tokens = float(amounts[2]) if is_counted else float(amounts[1]) * rates.get(cell.source, of_all)
            sums[key(cell)] = sums.get(key(cell), 0.0) + tokens
        return sums

    def of_edits(self, name: str, amounts: Amounts) -> tuple[int, int]:
        """Of a column of edits in these amounts: how many, and in how many documents."""
        at = 3 + self.edits.index(name)
        return int(amounts[at]), int(amounts[at + len(self.edits)])


@dataclass
class ReasonCount:
    """Removals for a reason: in how many documents it is the first, in how many it is one of several or the only one,
    and in how many it is the only one: these a looser setting brings back."""

    first: int = 0
    any: int = 0
    only: int = 0


class ReasonCounts:
    """Removals by (step, reason)."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], ReasonCount] = defaultdict(ReasonCount)

    def add(self, rows: pa.RecordBatch) -> None:
        """Counts removed documents."""
        named = [(reason, places) for reason, places, _ in reasons_of(rows)]
        num_reasons = np.zeros(rows.num_rows, np.int64)
        for _, places in named:
            num_reasons[places] += 1
        for reason, places in named:
            self.counts[reason].any += len(places)
            self.counts[reason].only += int((num_reasons[places] == 1).sum())
        firsts = pa.table([rows["step"], rows["reason"]], ["step", "reason"]).group_by(["step", "reason"])
        for row in firsts.aggregate([([], "count_all")]).to_pylist():
            self.counts[row["step"], row["reason"]].first += row["count_all"]


def reasons_of(rows: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], NDArray[np.int64], pa.Array]]:
    """Of removed documents by every reason: ((step, reason), the rows that have it, what the rule says of each)."""
    lists = rows[REASONS]
    flat, parents = lists.flatten(), pc.call_function("list_parent_indices", [lists]).to_numpy()
    steps, reasons, details = flat.flatten()
    names = pc.call_function("binary_join_element_wise", [steps, reasons, pa.scalar("\0")]).dictionary_encode()
    codes = names.indices.to_numpy()
    for code, name in enumerate(names.dictionary.to_pylist()):
        own = np.flatnonzero(codes == code)
        places, first = np.unique(parents[own], return_index=True)
        step, _, reason = name.partition("\0")
        yield (step, reason), places, details.take(pa.array(own[first]))
