"""A survey of an artifact of stage `documents`, in one pass: counts, distributions of scores, samples, groups.

What must hold: memory does not grow with the documents, but for 8 bytes for each removed duplicate; and the same
documents and seed give the same survey.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.breakdown import KINDS, REASONS, Breakdown, ReasonCounts, reasons_of
from lifecycle.data.inspecting.distributions import Score, distributions_of
from lifecycle.data.inspecting.evidence import DuplicateGroups, Group
from lifecycle.data.inspecting.samples import Keys, Place, Sample, Smallest, draw_keys, read_samples
from lifecycle.data.inspecting.selected import Part, column_ranges, columns_of, id_numbers, num_documents, read_parts
from lifecycle.data.measures.steps import DocumentStep
from lifecycle.data.shards import COUNTS

SAMPLES = 20  # of kept documents, and of those removed for each reason
GROUPS = 20  # of duplicates
_READ = ("id", "text_bytes", "step", "reason", "detail", REASONS, *KINDS)
_FARTHEST = 2**32 - 1  # the upper half of the key of a document that is no nearer to a limit than to 0

type Tokens = Mapping[str, NDArray[np.int32]]  # of each document of a split, in its order
type Reason = tuple[str, str]  # step, reason


@dataclass(frozen=True)
class Drawn:
    """A sample, and why it is one: what a rule says of it, or its score."""

    sample: Sample
    why: str


class Survey:
    """What is known of the documents. `scores`: those whose distribution is shown."""

    def __init__(self, folder: Path, steps: Sequence[DocumentStep], scores: Sequence[Score], seed: int) -> None:
        self._folder, self._seed = folder, seed
        self.edits = {step.name: step.edits for step in steps if step.edits}
        self.left = {step.name: step.left for step in steps if step.left}
        edits = tuple(chain(*self.edits.values(), *self.left.values()))
        ranges = column_ranges(folder, {score.column for score in scores})
        self.breakdown, self.reasons = Breakdown(edits), ReasonCounts()
        self.distributions = distributions_of(scores, ranges, columns_of(folder))
        self.duplicates = DuplicateGroups()
        self.columns = tuple(dict.fromkeys((*_READ, *edits, *(d.score.column for d in self.distributions))))
        self._drawn: Smallest[tuple[Place, str]] = Smallest(SAMPLES)
        self._samples: Mapping[Place, Sample] = {}

    def add(self, part: Part, tokens: NDArray[np.int64]) -> None:
        """Takes documents in, with the number of tokens of each."""
        rows = part.rows
        is_removed = part.split == "removed"
        self.breakdown.add(rows, rows["step"] if is_removed else pa.array([part.split] * len(tokens)), tokens)
        keys = draw_keys(id_numbers(rows), self._seed)
        for distribution in self.distributions:
            values = distribution.score.values(rows)
            distribution.add(values)
            if part.split == "kept":
                self._draw_nearest(part, distribution.score, keys, values)
        if is_removed:
            self.reasons.add(rows)
            self.duplicates.add(rows)
            for reason, places, details in reasons_of(rows):
                self._draw_removed(part, reason, keys, places, details)
        else:
            self._drawn.offer(part.split, keys, lambda at: (Place(part.split, part.first + at), ""))

    def read_samples(self) -> None:
        """Reads the documents that were drawn."""
        self._samples = read_samples(self._folder, (place for place, _ in self._drawn.all()))

    def drawn(self, group: Split | Reason | Score) -> list[Drawn]:
        """Documents of a split or removed for a reason, drawn at random; or kept ones whose score is nearest to a
        limit, the nearest first."""
        return [Drawn(self._samples[place], why) for place, why in self._drawn.of(group)]

    def largest_groups(self) -> list[Group]:
        """The groups of duplicates that lost the most documents."""
        return self.duplicates.largest(self._folder, GROUPS)

    def _draw_removed(
        self, part: Part, reason: Reason, keys: Keys, places: NDArray[np.int64], details: pa.Array
    ) -> None:
        def entry(i: int) -> tuple[Place, str]:
            return Place(part.split, part.first + int(places[i])), details[i].as_py()

        self._drawn.offer(reason, keys[places], entry)

    def _draw_nearest(self, part: Part, score: Score, keys: Keys, values: NDArray[np.float64]) -> None:
        """Of equally near ones the drawn order decides."""
        nearness = score.nearness(values)
        places = np.flatnonzero(nearness < 1)
        near = (nearness[places] * _FARTHEST).astype(np.uint64) << np.uint64(32) | keys[places] >> np.uint64(32)

        def entry(i: int) -> tuple[Place, str]:
            return Place(part.split, part.first + int(places[i])), f"{score.column} {values[places[i]]:,.6g}"

        self._drawn.offer(score, near, entry)


def token_counts(folder: Path, before: Sequence[Path] = ()) -> Tokens:
    """The tokens of each document of a corpus, from an artifact of stage `tokens`; `before`: the documents of the
    corpora that come first in it."""
    splits: tuple[tuple[str, Split], ...] = (("train", "kept"), ("heldout", "heldout"))
    counts: dict[str, NDArray[np.int32]] = {}
    for name, split in splits:
        first = sum(num_documents(other, [split]) for other in before)
        counts[split] = np.load(folder / f"{name}.{COUNTS}.npy", mmap_mode="r")[first:]
    return counts


def survey(
    folder: Path, steps: Sequence[DocumentStep], scores: Sequence[Score], tokens: Tokens, seed: int, progress: Progress
) -> Survey:
    """Surveys the artifact in `folder`. `scores`: those whose distribution is shown; `tokens`: of the splits that have
    shards."""
    result = Survey(folder, steps, scores, seed)
    progress.start("reading documents", num_documents(folder))
    done = 0
    for part in read_parts(folder, result.columns):
        counted, end = tokens.get(part.split), part.first + part.rows.num_rows
        own = np.zeros(part.rows.num_rows) if counted is None else counted[part.first : end]
        result.add(part, np.asarray(own, np.int64))
        done += part.rows.num_rows
        progress.update(done)
    progress.start("reading samples")
    result.read_samples()
    return result
