"""Distributions: how many documents have which score, and how many are outside the limits of the rules over it.

A score's bins end at its limits, so a bin is inside or outside; what is outside is counted, not read off the bins.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.measures.steps import DocumentStep, Limit, are_in

BINS = 40
MAX_LINEAR = 1000  # above it, a score is a count over several orders of magnitude: its bins get wider


@dataclass(frozen=True)
class Score:
    """A column with the limits of all rules over it; documents in [low, high] pass. `language`: of these documents
    only; `not_in`: of those in other languages."""

    column: str
    language: str | None
    low: float
    high: float
    reasons: tuple[str, ...]  # of the rules
    not_in: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The column, and of which documents."""
        only = "" if self.language is None else f", language {self.language}"
        return self.column + only + (f", languages but for {', '.join(self.not_in)}" if self.not_in else "")

    def values(self, rows: pa.RecordBatch) -> NDArray[np.float64]:
        """The score of each document, NaN where no rule over it applies."""
        values = rows[self.column].to_numpy(zero_copy_only=False).astype(np.float64)
        if self.language is not None or self.not_in:
            values[~are_in(rows["language"], self.language, self.not_in)] = np.nan
        return values

    def nearness(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near values that pass are to the nearest limit, from 0, as a share of that limit; NaN for the others."""
        shares = [abs(values - bound) / (abs(bound) or 1) for bound in (self.low, self.high) if math.isfinite(bound)]
        return np.where((values < self.low) | (values > self.high), np.nan, np.minimum.reduce(shares))


@dataclass(frozen=True)
class Bins:
    """The bins of a score: `edges[i] <= value < edges[i + 1]`. `is_log`: they get wider, after one from 0 to 1."""

    edges: NDArray[np.float64]
    is_log: bool


class Distribution:
    """The documents by a score."""

    def __init__(self, score: Score, bins: Bins) -> None:
        self.score, self.bins = score, bins
        self.counts = np.zeros(len(bins.edges) - 1, np.int64)
        self.num_documents = self.num_below = self.num_above = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Counts documents by their scores; NaN does not count."""
        values = values[~np.isnan(values)]
        self.counts += np.histogram(values, self.bins.edges)[0]
        self.num_documents += len(values)
        self.num_below += int((values < self.score.low).sum())
        self.num_above += int((values > self.score.high).sum())


def scores_of(steps: Iterable[DocumentStep]) -> list[Score]:
    """The scores that limits apply to, in the order of the rules. Where a language has limits of its own, they are a
    score of its documents, and those of the others are another one."""
    limits: dict[str, list[Limit]] = {}
    for step in steps:
        for rule in step.rules:
            if isinstance(rule, Limit):
                limits.setdefault(rule.column, []).append(rule)
    return [score for column, rules in limits.items() for score in _scores(column, rules)]


def _scores(column: str, rules: Sequence[Limit]) -> Iterator[Score]:
    for_all = [rule for rule in rules if rule.language is None]
    languages = tuple(
        dict.fromkeys(chain.from_iterable((*rule.not_in, *filter(None, [rule.language])) for rule in rules))
    )
    if for_all:
        yield _score(column, None, for_all, languages)
    for language in languages:
        own = [rule for rule in rules if rule.language in (None, language) and language not in rule.not_in]
        if own:
            yield _score(column, language, own)


def _score(column: str, language: str | None, rules: Sequence[Limit], not_in: tuple[str, ...] = ()) -> Score:
    reasons = tuple(dict.fromkeys(rule.reason for rule in rules))
    return Score(column, language, max(rule.low for rule in rules), min(rule.high for rule in rules), reasons, not_in)


def distributions_of(
    scores: Sequence[Score], ranges: Mapping[str, tuple[float, float]], schema: pa.Schema
) -> list[Distribution]:
    """An empty distribution for each score that any document has. `ranges`: the smallest and largest value."""
    return [
        Distribution(score, bins_of(score, *ranges[score.column], pa.types.is_integer(schema.field(score.column).type)))
        for score in scores
        if score.column in ranges
    ]


def bins_of(score: Score, smallest: float, largest: float, is_whole: bool) -> Bins:
    """Bins from the smallest to the largest value, and as far as the limits; there is one on both sides of a limit."""
    limits = [bound for bound in (score.low, score.high) if math.isfinite(bound)]
    first, last = min(smallest, *limits), max(largest, *limits)
    is_log = first >= 0 and last > MAX_LINEAR
    width = (last - first) / BINS or 1.0
    if score.high == first and not is_log:
        first -= width
    if score.low == last or last == first:
        last += width
    edges = np.append(0, np.geomspace(1, last, BINS)) if is_log else np.linspace(first, last, BINS + 1)
    if is_whole:
        edges = np.append(np.floor(edges), np.floor(last) + 1)
    ends = [score.low, np.floor(score.high) + 1 if is_whole else np.nextafter(score.high, np.inf)]  # `high` passes
    ends = [end for end in ends if math.isfinite(end)]
    is_double = np.isclose(edges[:, None], ends, rtol=0, atol=1e-9 * (last - first)).any(axis=1)
    return Bins(np.unique([edges[0], *edges[~is_double], *ends]), is_log)
