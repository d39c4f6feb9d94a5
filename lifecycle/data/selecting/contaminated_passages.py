"""Decontamination that cuts: of a document that would be removed, what it shares with test items goes, the rest stays.

As for GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): each n-gram goes with 200 characters at its sides,
pieces of fewer than 200 characters go too, and a document in more than ten pieces is removed whole, as source code is.
What must hold: what stays of a document shares no n-gram with any item that counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.documents import pieces_of
from lifecycle.data.measures.steps import Failure
from lifecycle.data.ngrams import bare_characters, ngram_hashes
from lifecycle.data.placed_words import words_of
from lifecycle.data.selecting.cuts import NO_SPANS, SPACES, CutStretch, Spans, left_of, merged
from lifecycle.data.selecting.cutting import write_cuts
from lifecycle.data.selecting.decontaminate import STEP
from lifecycle.data.selecting.document_text import DocumentText, within
from lifecycle.data.selecting.gram_lookup import Lookup
from lifecycle.data.selecting.selection import removals
from lifecycle.data.tagging.engine import Engine

MARGIN = 200  # characters that go at either side of an n-gram
LEAST_PIECE = 200  # characters of a piece that stays, blanks not counted
MOST_PIECES = 10


def cut_contaminated(
    stretches: Sequence[CutStretch], removed: pa.Table, lookup: Lookup, engine: Engine, folder: Path, progress: Progress
) -> tuple[list[CutStretch], pa.Table]:
    """The stretches without what the removed documents share with items, and the removals that remain, with the reason
    why these documents were not cut. `folder` must outlive the stretches."""
    lookup.save(folder)
    chosen = np.zeros(stretches[-1].end if stretches else 0, bool)
    chosen[removed["ordinal"].to_numpy()] = True
    cut, failures = write_cuts(
        STEP, pieces_of(stretches, chosen), SharedPassages(folder), InPieces(folder), folder, engine, progress
    )
    changed = [np.unique(stretch.files[-1].read().ordinals) for stretch in cut]
    saved = np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *changed]), [failure.ordinal for failure in failures])
    removed = removed.filter(pa.array(~np.isin(removed["ordinal"].to_numpy(), saved)))
    return cut, pa.concat_tables([removed, removals(STEP, failures)])


@dataclass(frozen=True)
class SharedPassages:
    """What a document shares with the items of the lookup in a folder, with margins, and pieces that are too short."""

    folder: Path

    def __call__(self, text: DocumentText) -> Spans:
        """The bytes of each."""
        shared = _shared_ngrams(text, _opened(self.folder))
        if not len(shared):
            return shared
        spans = merged(_with_margins(text, shared))
        is_short = _lengths(text, spans) < LEAST_PIECE
        between = np.stack([np.append(0, spans[:, 1]), np.append(spans[:, 0], len(text.data))], axis=1)
        return merged(np.concatenate([spans, between[is_short]]))


@dataclass(frozen=True)
class InPieces:
    """Removes documents of which nothing stays, or too many pieces, or which share an n-gram all the same: one across
    what an earlier step has cut."""

    folder: Path

    def __call__(self, text: DocumentText, spans: Spans) -> Failure | None:
        """The document's removal, if it is one."""
        lookup = _opened(self.folder)
        data = text.data.tobytes()
        left, _ = left_of(data, spans)
        shared = merged(_with_margins(text, _shared_ngrams(text, lookup)))
        num_pieces = int((_lengths(text, shared) > 0).sum())
        if not left.strip():
            why = f"nothing of {MARGIN} characters and more would stay"
        elif num_pieces > MOST_PIECES:
            why = f"{num_pieces} pieces would stay, more than {MOST_PIECES}"
        elif lookup.match(left.decode()) is not None:
            why = "what would stay shares words with a test item across an earlier cut"
        else:
            return None
        return Failure(text.ordinal, "in_pieces", f"not cut: {why}")


def _shared_ngrams(text: DocumentText, lookup: Lookup) -> Spans:
    """The bytes of all n-grams that the items have, too; words are those of the lookup."""
    words = words_of(text.data, bare_characters())
    is_cut, parts = within(words.begins, text.cut)
    words, parts = words.where(~is_cut), parts[~is_cut]
    spans: list[Spans] = [NO_SPANS]
    for n, known in lookup.hashes.items():
        grams = ngram_hashes(words.hashes, n)
        at = np.searchsorted(known, grams)
        at[at == len(known)] = 0
        firsts = np.flatnonzero(known[at] == grams) if len(known) else np.zeros(0, np.int64)
        firsts = firsts[parts[firsts] == parts[firsts + n - 1]]
        spans.append(np.stack([words.begins[firsts], words.ends[firsts + n - 1]], axis=1).astype(np.int64))
    return merged(np.concatenate(spans))


def _with_margins(text: DocumentText, spans: Spans) -> Spans:
    """Spans with the characters at their sides, whole words of them."""
    data = text.data.tobytes()
    starts = np.flatnonzero((text.data & 0xC0) != 0x80)  # of characters
    edges = np.append(starts, len(data))
    low = edges[np.maximum(np.searchsorted(edges, spans[:, 0]) - MARGIN, 0)]
    high = edges[np.minimum(np.searchsorted(edges, spans[:, 1]) + MARGIN, len(starts))]
    wide = [
        (_behind_blank(data, begin, first), _before_blank(data, last, end))
        for begin, first, last, end in zip(low.tolist(), *spans.T.tolist(), high.tolist(), strict=True)
    ]
    return np.array(wide, np.int64).reshape(-1, 2)


def _behind_blank(data: bytes, begin: int, end: int) -> int:
    """Where the first whole word from `begin` on begins, before `end`."""
    if not begin or data[begin - 1] in SPACES:
        return begin
    return next((at + 1 for at in range(begin, end) if data[at] in SPACES), begin)


def _before_blank(data: bytes, begin: int, end: int) -> int:
    """Where the last whole word before `end` ends, behind `begin`."""
    if end == len(data) or data[end] in SPACES:
        return end
    return next((at for at in range(end - 1, begin - 1, -1) if data[at] in SPACES), end)


def _lengths(text: DocumentText, spans: Spans) -> NDArray[np.int64]:
    """The characters of the pieces between spans, without blanks and what earlier steps have cut there."""
    counts = ((text.data & 0xC0) != 0x80) & ~np.isin(text.data, np.frombuffer(SPACES, np.uint8))
    for begin, end in text.cut.tolist():
        counts[begin:end] = False
    before = np.append(0, np.cumsum(counts))
    return before[np.append(spans[:, 0], len(counts))] - before[np.append(0, spans[:, 1])]


@lru_cache(maxsize=1)
def _opened(folder: Path) -> Lookup:
    return Lookup.load(folder)
