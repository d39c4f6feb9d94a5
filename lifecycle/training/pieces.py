"""Text as pieces of documents, one after the other, from which rows of any length are cut.

An epoch begins with all documents whole. When rows get another length in its middle, what no row has had yet is its
rest: the pieces between the rows that were read. What must hold: rows cut from a text, and those cut later from its
rest, have each target of the text exactly once, whatever the lengths and wherever the changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Pieces:
    """Piece `i` is of `documents[i]`, from its token `begins[i]` on, and begins at position `starts[i]` of the text,
    which ends at `starts[-1]`. The target of a position is the next token of its document, in the text or not.
    """

    documents: np.ndarray  # [P]
    begins: np.ndarray  # [P]
    starts: np.ndarray  # [P + 1]
    size: int  # the positions that rows are cut from: without a last one that has no target

    @classmethod
    def whole(cls, order: np.ndarray, lengths: np.ndarray) -> Self:
        """All documents in this order."""
        starts = np.concatenate([[0], np.cumsum(lengths[order])])
        return cls(order, np.broadcast_to(np.int64(0), len(order)), starts, int(starts[-1]) - 1)

    @classmethod
    def of(cls, documents: np.ndarray, begins: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> Self:
        """Pieces up to `ends`, without the documents' last tokens, which have no targets; so no row is without any."""
        ends = np.minimum(ends, lengths[documents] - 1)
        kept = ends > begins
        starts = np.concatenate([[0], np.cumsum((ends - begins)[kept])])
        return cls(documents[kept], begins[kept], starts, int(starts[-1]))

    @property
    def ends(self) -> np.ndarray:
        """The end of each piece in its document."""
        return self.begins + np.diff(self.starts)

    def num_rows(self, seq_len: int) -> int:
        """How many rows of `seq_len` positions there are; the last may be shorter."""
        return -(-self.size // seq_len)

    def in_row(self, row: int, seq_len: int) -> Iterator[tuple[int, int, int]]:
        """(document, its first token in the row, the end of its tokens there), in order."""
        first = row * seq_len
        last = min(first + seq_len, int(self.starts[-1]))
        at = int(np.searchsorted(self.starts, first, side="right")) - 1
        while self.starts[at] < last:
            start, end = int(self.starts[at]), int(self.starts[at + 1])
            shift = int(self.begins[at]) - start
            yield int(self.documents[at]), max(start, first) + shift, min(end, last) + shift
            at += 1

    def rest(self, unread: np.ndarray, seq_len: int, lengths: np.ndarray) -> Self:
        """What is in the rows `unread`, in the order of the text; neighbouring rows are joined."""
        unread = np.sort(unread)
        gap = np.flatnonzero(np.diff(unread) != 1)
        firsts = unread[np.concatenate([[0], gap + 1])] * seq_len if len(unread) else unread
        lasts = (unread[np.concatenate([gap, [-1]])] + 1) * seq_len if len(unread) else unread
        lasts = np.minimum(lasts, self.starts[-1])
        low = np.searchsorted(self.starts, firsts, side="right") - 1  # the first piece of each run of rows,
        counts = np.searchsorted(self.starts, lasts, side="left") - low  # and how many there are in it
        run = np.repeat(np.arange(len(counts)), counts)
        piece = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts) + low[run]
        shift = self.begins[piece] - self.starts[piece]
        begins = np.maximum(self.starts[piece], firsts[run]) + shift
        ends = np.minimum(self.starts[piece + 1], lasts[run]) + shift
        return self.of(self.documents[piece], begins, ends, lengths)

    def among(self, numbers: np.ndarray, lengths: np.ndarray) -> Self:
        """The pieces of the documents `numbers` (increasing), which are counted from 0 then, with these `lengths`."""
        place = np.minimum(np.searchsorted(numbers, self.documents), len(numbers) - 1)
        own = numbers[place] == self.documents
        return self.of(place[own], self.begins[own], self.ends[own], lengths)

    @classmethod
    def joined(cls, parts: Sequence[tuple["Pieces", np.ndarray]], lengths: np.ndarray) -> Self:
        """Texts one after the other; with each, the numbers that its documents have in the whole, of `lengths`."""
        documents, begins, ends = (
            np.concatenate(arrays)
            for arrays in zip(*((numbers[p.documents], p.begins, p.ends) for p, numbers in parts), strict=True)
        )
        return cls.of(documents, begins, ends, lengths)
