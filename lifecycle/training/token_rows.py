"""Rows of token documents in a run that changes their length or mixture at some steps.

A run's phases are its stretches with one `seq_len` and one `mixture`. The state of its data is the list of those
before: their settings and how many rows of each were read. All else follows by arithmetic. What must hold, for each
source, through any phases: no token but a document's first is a target twice in an epoch, and none is left out of it;
with an unchanged length the source's next row is the one that was to come.

Without a mixture all documents are one source. Where a mixture begins, each source goes on with what is left of its
own documents in the epoch under way; where it ends, what is left of each is read first, then epochs of all documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lifecycle.core.config import digest
from lifecycle.training.document_rows import DocumentRows, TokenDocuments
from lifecycle.training.mixture import Mixture
from lifecycle.training.packing import DataStateError, Row, RowSource
from lifecycle.training.pieces import Pieces

ALL = ""  # the one source of a run without a mixture


class NumberedDocuments(TokenDocuments, Protocol):
    """The documents of one source."""

    @property
    def numbers(self) -> np.ndarray:
        """Their numbers among all documents, increasing."""
        ...


class Corpus(TokenDocuments, Protocol):
    """Documents of several sources: the part of `data.shards.TokenShards` that `TokenRows` needs."""

    @property
    def sources(self) -> Sequence[str]:
        """The names of the sources."""
        ...

    def of_source(self, name: str) -> NumberedDocuments:
        """The documents of one source."""
        ...


class TokenRows:
    """Rows of `seq_len` tokens of all documents, or of each source in its share of the mixture, after `past` phases.

    `num_rows`, of one epoch or of one period of the mixture, knows nothing of what was read before.
    """

    def __init__(
        self, corpus: Corpus, seq_len: int, mixture: Mapping[str, float], seed: int,
        past: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        self._corpus, self._seed, self._past = corpus, seed, tuple(past)
        self.phase: Mapping[str, Any] = {"seq_len": seq_len, "mixture": dict(mixture)}
        sources: dict[str, DocumentRows] = {}
        for number, phase in enumerate(past):
            sources, rows = self._begin(phase, sources)
            if phase["source"] != _fingerprint(rows, past[:number]):
                raise DataStateError(
                    f"the checkpoint goes on from {phase['rows']} rows of {phase['seq_len']} tokens of other data: "
                    "documents, tokenizer or seed differ; restore them or start a new run"
                )
            sources = _read(sources, rows, phase["rows"], phase["seq_len"])
        _, self._rows = self._begin(self.phase, sources)
        self.fingerprint = _fingerprint(self._rows, past)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, or of a period of the mixture."""
        return self._rows.num_rows

    def row(self, index: int) -> Row:
        """The row with this index, counted from the phase's first one."""
        return self._rows.row(index)

    def contents(self, index: int) -> dict[str, Any]:
        """The row's source, if there is a mixture, its documents, and which of their tokens."""
        return self._rows.contents(index)

    def after(self, past: Sequence[Mapping[str, Any]]) -> "TokenRows":
        """The rows of the same documents and settings after these phases."""
        return TokenRows(self._corpus, self.phase["seq_len"], self.phase["mixture"], self._seed, past)

    def _begin(
        self, phase: Mapping[str, Any], sources: Mapping[str, DocumentRows]
    ) -> tuple[dict[str, DocumentRows], RowSource]:
        """(all sources, with those of a phase as it begins; its rows). `sources`: as far as they were read."""
        seq_len, mixture = phase["seq_len"], phase["mixture"]
        names = list(mixture) or [ALL]
        if mixture and ALL in sources:
            sources = self._parted(sources[ALL], seq_len)
        elif sources and not mixture and ALL not in sources:
            sources = {ALL: self._joined(sources, seq_len)}
        known = {name: sources[name] if name in sources else self._unread(name, seq_len) for name in names}
        now = {name: rows.from_row(0, seq_len) for name, rows in known.items()}
        return {**sources, **now}, Mixture(now, mixture) if mixture else now[ALL]

    def _unread(self, name: str, seq_len: int) -> DocumentRows:
        return DocumentRows(self._corpus if name == ALL else self._corpus.of_source(name), seq_len, self._seed)

    def _parted(self, everything: DocumentRows, seq_len: int) -> dict[str, DocumentRows]:
        """Each source of the corpus, with what is left of it in the epoch of all documents."""
        epoch, text = everything.left(0)
        parted = {}
        for name in self._corpus.sources:
            own = self._corpus.of_source(name)
            rest = None if text is None else text.among(own.numbers, own.lengths)
            parted[name] = self._unread(name, seq_len).begin(seq_len, epoch, rest)
        return parted

    def _joined(self, sources: Mapping[str, DocumentRows], seq_len: int) -> DocumentRows:
        """All documents, beginning with what is left of each source in the epoch that it has reached."""
        parts, epochs = [], []
        for name in self._corpus.sources:
            rows = sources[name] if name in sources else self._unread(name, seq_len)
            epoch, text = rows.left(0)
            parts.append((rows.whole(epoch) if text is None else text, self._corpus.of_source(name).numbers))
            epochs.append(epoch)
        return self._unread(ALL, seq_len).begin(seq_len, max(epochs), Pieces.joined(parts, self._corpus.lengths))


def _read(sources: Mapping[str, DocumentRows], rows: RowSource, count: int, seq_len: int) -> dict[str, DocumentRows]:
    """The sources, those of `rows` from the row on that follows their first `count` rows."""
    read = rows.rows_before(count) if isinstance(rows, Mixture) else {ALL: count}
    return {**sources, **{name: sources[name].from_row(number, seq_len) for name, number in read.items()}}


def _fingerprint(rows: RowSource, past: Sequence[Mapping[str, Any]]) -> str:
    return digest(["after", list(past), rows.fingerprint]) if past else rows.fingerprint
