"""Rows of token documents, for pre-training.

An epoch's documents are permuted, concatenated and cut; a document that crosses a row continues in the next row as a
new segment. Rows are shuffled, so neighbouring rows of a long document are in different batches. What must hold: in
each epoch every token but a document's first is a target exactly once, also if the rows get another length in between.
"""

import hashlib
from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol, Self

import numpy as np

from lifecycle.core.config import digest
from lifecycle.training.packing import FixedRows, PackingError, PerEpoch, Row, permutation
from lifecycle.training.pieces import Pieces


class TokenDocuments(Protocol):
    """Documents as token ids with random access: the part of `data.shards.TokenShards` that `DocumentRows` needs."""

    @property
    def lengths(self) -> np.ndarray:
        """The documents' lengths in tokens."""
        ...

    @property
    def index(self) -> dict[str, Any]:
        """Data that identifies the documents; a part of the fingerprint."""
        ...

    def __getitem__(self, document: int) -> np.ndarray: ...

    def name(self, document: int) -> str:
        """What people know a document by."""
        ...


class DocumentRows(FixedRows):
    """Rows of `seq_len` tokens; the last one of an epoch ends in padding."""

    def __init__(self, documents: TokenDocuments, seq_len: int, seed: int) -> None:
        self.documents, self._seq_len, self._seed = documents, seq_len, seed
        self._epoch, self._first = 0, 0
        self._rest: Pieces | None = None
        self._lengths = documents.lengths.astype(np.int64)
        self._num_tokens = int(self._lengths.sum())
        if self._num_tokens < 2:
            raise PackingError(f"{self._num_tokens} tokens in {len(self._lengths)} documents: nothing to learn from")
        self._plan = PerEpoch(self._make_plan)
        self._hashed = hashlib.sha256(self._lengths.tobytes()).hexdigest()

    def begin(self, seq_len: int, epoch: int, rest: Pieces | None, first: int = 0) -> Self:
        """Rows of the same documents: row 0 is row `first` of `epoch`, whose text is `rest`, or all documents. Later
        epochs have all documents."""
        rows = copy(self)
        rows._seq_len, rows._epoch, rows._rest, rows._first = seq_len, epoch, rest, first
        rows._plan = PerEpoch(rows._make_plan)
        return rows

    @property
    def fingerprint(self) -> str:
        """A hash of the documents, their order and the length of rows; it is the same wherever they begin."""
        return digest(["documents", self._seq_len, self._seed, self._hashed, self.documents.index])

    @property
    def num_rows(self) -> int:
        """Rows of a whole epoch."""
        return -(-(self._num_tokens - 1) // self._seq_len)  # the last token is a target only

    def place(self, index: int) -> tuple[int, int]:
        """(the epoch of row `index`, the row's number there)."""
        index += self._first
        here = self.num_rows if self._rest is None else self._rest.num_rows(self._seq_len)
        if index < here:
            return self._epoch, index
        later, row = divmod(index - here, self.num_rows)
        return self._epoch + 1 + later, row

    def from_row(self, index: int, seq_len: int) -> Self:
        """The rows from row `index` on; if `seq_len` is another one, what is left of the epoch is cut anew."""
        if seq_len == self._seq_len:
            return self.begin(seq_len, self._epoch, self._rest, self._first + index)
        return self.begin(seq_len, *self.left(index))

    def left(self, index: int) -> tuple[int, Pieces | None]:
        """(the epoch of row `index`, what its rows from that one on have: None for a whole epoch)."""
        epoch, row = self.place(index)
        if row == 0 and not (self._rest is not None and epoch == self._epoch):
            return epoch, None
        text, order = self._plan(epoch)
        return epoch, text.rest(order[row:], self._seq_len, self._lengths)

    def whole(self, epoch: int) -> Pieces:
        """The text of an epoch from its beginning."""
        return Pieces.whole(permutation(self._seed, epoch, "documents", len(self._lengths)), self._lengths)

    def _make_plan(self, epoch: int) -> tuple[Pieces, np.ndarray]:
        """(the epoch's text, its rows in order)."""
        if self._rest is not None and epoch == self._epoch:
            return self._rest, permutation(self._seed, epoch, "rest", self._rest.num_rows(self._seq_len))
        return self.whole(epoch), permutation(self._seed, epoch, "rows", self.num_rows)

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        tokens, targets, positions, segments = np.zeros((4, self._seq_len), np.int32)
        learned = np.zeros(self._seq_len, np.float32)
        at = 0
        for segment, (document, begin, end) in enumerate(self._pieces(index), 1):
            ids, here = self._read(document), slice(at, at + end - begin)
            following = ids[begin + 1 : end + 1]
            tokens[here], positions[here], segments[here] = ids[begin:end], np.arange(end - begin), segment
            targets[at : at + len(following)] = following
            learned[at : at + len(following)] = 1
            at += end - begin
        return {
            "tokens": tokens,
            "targets": targets,
            "positions": positions,
            "segment_ids": segments,
            "loss_mask": learned,
        }

    def contents(self, index: int) -> dict[str, Any]:
        """The row's documents, in order, and which of their tokens, with the last target."""
        pieces = ((d, begin, min(end + 1, int(self._lengths[d]))) for d, begin, end in self._pieces(index))
        return {"documents": [{"document": self.documents.name(d), "tokens": [begin, end]} for d, begin, end in pieces]}

    def _pieces(self, index: int) -> Iterator[tuple[int, int, int]]:
        """(document, its first token in the row, the end of its tokens there), in order."""
        epoch, row = self.place(index)
        text, order = self._plan(epoch)
        return text.in_row(int(order[row]), self._seq_len)

    def _read(self, document: int) -> np.ndarray:
        ids = self.documents[document]
        if len(ids) != self._lengths[document]:  # a file cut after it was opened reads as empty records
            raise PackingError(
                f"document {document} has {len(ids)} tokens, the index says {self._lengths[document]}: its shard was "
                "damaged after it was opened; write the token shards again"
            )
        return ids
