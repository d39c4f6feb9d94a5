"""Decontamination: removes whole training documents that contain text that the model will be tested on.

Word 13-grams by default, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). The share of n-grams in common
decides, as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), so that a licence header alone does not count. The share
is taken on both sides: how much of the test item the training document contains, and how much of the training document
the test item contains (an excerpt of a held-out document must not be trained on, either).
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import batched
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.config import DecontaminationConfig
from lifecycle.data.documents import PIECE, Stretch
from lifecycle.data.engine import Engine, ordered_results
from lifecycle.data.eval_items import TestItem
from lifecycle.data.overlap_index import Lookup, Match, OverlapIndex
from lifecycle.data.selection import removals
from lifecycle.data.steps import Failure

STEP = "decontamination"

type Chosen = NDArray[np.bool_]  # one for each document of a stretch
type Matches = list[tuple[int, Match]]  # of the documents that have one, by ordinal


def decontaminate(
    stretches: Sequence[Stretch], chosen: Chosen, items: Sequence[TestItem], config: DecontaminationConfig,
    engine: Engine, scratch: Path,
) -> tuple[pa.Table, int]:  # fmt: skip
    """The removals of chosen documents that overlap an item, and the number of items too short to compare; `chosen`
    has an entry for each document."""
    index = OverlapIndex(items, config.ngram)
    with tempfile.TemporaryDirectory(prefix="decontamination-", dir=scratch) as folder:
        index.lookup.save(Path(folder))
        parts = [(stretch, chosen[stretch.first : stretch.end]) for stretch in stretches]
        pieces = [(piece, Path(folder)) for piece in batched(parts, PIECE)]
        matches = [match for found in ordered_results(engine, _matches, pieces) for match in found]
    index.drop_boilerplate(match for _, match in matches)
    return removals(STEP, _failures(matches, index, config.min_overlap)), index.num_too_short


def _matches(piece: tuple[Sequence[tuple[Stretch, Chosen]], Path]) -> Matches:
    """What the chosen documents of some stretches have in common with the items; in worker processes."""
    parts, folder = piece
    lookup = _opened(folder)
    found: Matches = []
    for stretch, chosen in parts:
        documents = stretch.read(["text"]).filter(pa.array(chosen))
        for ordinal, text in zip(documents["ordinal"].to_pylist(), documents["text"].to_pylist(), strict=True):
            if (match := lookup.match(text)) is not None:
                found.append((ordinal, match))
    return found


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Lookup:
    return Lookup.load(folder)


def _failures(matches: Matches, index: OverlapIndex, min_overlap: float) -> Iterator[Failure]:
    for ordinal, match in matches:
        hit = index.worst(match)
        if hit is not None and hit.share >= min_overlap:
            yield Failure(ordinal, hit.item.kind, f"{hit.share:.2f} of the n-grams with {hit.item.name}")
