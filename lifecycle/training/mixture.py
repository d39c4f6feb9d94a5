"""Several row sources read as one, in given proportions.

The schedule is a table: each source has its share of `PERIOD` consecutive rows, rounded and evenly spread. A row's
source and its index in that source are found by index arithmetic; each source goes through its own epochs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lifecycle.core.config import ConfigError, digest
from lifecycle.training.config import PERIOD
from lifecycle.training.packing import FixedRows, Row, RowSource


class Mixture(FixedRows):
    """Rows of `sources` in proportion to `weights` (any positive numbers, by the same names).

    All sources must return the same arrays and shapes. `num_rows` is one period of the schedule.
    """

    def __init__(self, sources: Mapping[str, RowSource], weights: Mapping[str, float]) -> None:
        if set(sources) != set(weights) or not sources:
            raise ConfigError(f"mixture: weights for {sorted(weights)}, sources are {sorted(sources)}; name each once")
        counts = rows_per_period(weights)
        self._names = sorted(sources)
        self._sources = [sources[name] for name in self._names]
        self._counts = np.array([counts[name] for name in self._names], np.int64)
        self._source_of, self._rank_of = _schedule(self._counts)
        parts = zip(self._names, map(int, self._counts), (s.fingerprint for s in self._sources), strict=True)
        self.fingerprint = digest(["mixture", *map(list, parts)])

    @property
    def num_rows(self) -> int:
        """Rows of a period."""
        return PERIOD

    def locate(self, index: int) -> tuple[str, int]:
        """(the source of row `index`, the row's index there)."""
        period, slot = divmod(index, PERIOD)
        source = int(self._source_of[slot])
        return self._names[source], period * int(self._counts[source]) + int(self._rank_of[slot])

    def rows_before(self, index: int) -> dict[str, int]:
        """How many rows of each source come before row `index`."""
        period, slot = divmod(index, PERIOD)
        begun = np.bincount(self._source_of[:slot], minlength=len(self._names))
        return dict(zip(self._names, map(int, period * self._counts + begun), strict=True))

    def row(self, index: int) -> Row:
        """The row that this index of the mixture maps to."""
        name, own_index = self.locate(index)
        return self._sources[self._names.index(name)].row(own_index)

    def contents(self, index: int) -> dict[str, Any]:
        """What is in that row, and its source."""
        name, own_index = self.locate(index)
        return {"source": name} | self._sources[self._names.index(name)].contents(own_index)


def rows_per_period(weights: Mapping[str, float], period: int = PERIOD) -> dict[str, int]:
    """Whole numbers in proportion to `weights` that sum to `period`: largest remainders are rounded up.

    Raises `ConfigError` for a weight that is not positive, or gives less than one row per period.
    """
    for name, weight in weights.items():
        if not weight > 0:
            raise ConfigError(f"mixture: weight {weight} of {name!r} is not positive; leave the source out instead")
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], float)
    shares /= shares.max()  # otherwise the sum of large weights could be infinite
    exact = shares / shares.sum() * period
    counts = np.floor(exact).astype(np.int64)
    missing = period - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    if not all(counts):
        name = names[int(np.argmin(counts))]
        raise ConfigError(f"mixture: {name!r} has less than one row in {period}; raise its weight or leave it out")
    return dict(zip(names, map(int, counts), strict=True))


def _schedule(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each slot of a period, its source and its rank among the source's slots: row `j` of `n` is due at
    `(j + 1/2) / n` of the period."""
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    order = np.lexsort((source, (rank + 0.5) / counts[source]))
    return source[order], rank[order]
