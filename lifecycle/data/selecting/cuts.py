"""Passages that are cut from documents which stay: where they are recorded, and what is left of a text.

A cut is a span of the bytes of a document's text as it was tagged, whichever step makes it, so steps need not know
what others have cut. Each step writes its cuts to files, a batch for each stretch. Documents that stay have the
passages beside what is left, so nothing is lost; those that are removed have their whole text, and beside it what would
have gone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.documents import Stretch

# The passages that steps cut from a document, or would have cut from one that is removed, in order, in characters of
# the text as it was tagged; null for none.
CUTS = pa.field("cuts", pa.list_(pa.struct([
    ("step", pa.string()), ("begin", pa.int64()), ("end", pa.int64()), ("text", pa.string()),
])))  # fmt: skip
_RECORDED = pa.schema([("ordinal", pa.int64()), ("begin", pa.int64()), ("end", pa.int64())])
NEWLINE = 10
SPACES = b" \t\n\r\f\v"

type Spans = NDArray[np.int64]  # [n, 2]: begins and ends
NO_SPANS = np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class CutFile:
    """What a step has cut from the documents of a stretch: a batch of a file."""

    step: str
    path: Path
    batch: int

    def read(self) -> "StretchCuts":
        """The cuts, by document."""
        with pa.memory_map(str(self.path)) as source:
            table = pa.ipc.open_file(source).get_batch(self.batch)
            ordinals, begins, ends = (table[name].to_numpy().copy() for name in _RECORDED.names)
        return StretchCuts(ordinals, np.stack([begins, ends], axis=1))


class StretchCuts(NamedTuple):
    """Cuts of the documents of a stretch, sorted by ordinal, then by place."""

    ordinals: NDArray[np.int64]
    spans: Spans

    def of(self, ordinal: int) -> Spans:
        """Those of a document."""
        low, high = np.searchsorted(self.ordinals, [ordinal, ordinal + 1])
        return self.spans[low:high]


@dataclass(frozen=True)
class CutStretch(Stretch):
    """A stretch whose texts are read without what steps have cut from them."""

    files: tuple[CutFile, ...] = ()

    @classmethod
    def of(cls, stretch: Stretch) -> "CutStretch":
        """With nothing cut."""
        return cls(stretch.path, stretch.group, stretch.first, stretch.num_documents)

    def after(self, cuts: CutFile) -> "CutStretch":
        """With the cuts of a further step."""
        return replace(self, files=(*self.files, cuts))

    def tagged(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The documents as they were tagged, with these columns (None: all) and `ordinal`."""
        return super().read(columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The documents with these columns (None: all) and `ordinal`, cut."""
        if not self.files or columns is None or not {"text", "text_bytes"} & set(columns):
            return without_cuts(self.tagged(columns), self)
        return without_cuts(self.tagged([*{*columns, "text"}]), self).select([*columns, "ordinal"])


def spans_of(stretch: CutStretch) -> StretchCuts:
    """All cuts of a stretch."""
    read = [cuts.read() for cuts in stretch.files]
    ordinals = np.concatenate([np.zeros(0, np.int64), *(own.ordinals for own in read)])
    spans = np.concatenate([NO_SPANS, *(own.spans for own in read)])
    order = np.lexsort((spans[:, 0], ordinals))
    return StretchCuts(ordinals[order], spans[order])


class CutWriter:
    """Writes the cuts of some stretches, a batch for each. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.new_file(path, _RECORDED)

    def __enter__(self) -> "CutWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, cuts: Sequence[tuple[int, Spans]]) -> None:
        """The cuts of the next stretch, (ordinal, spans) of each document in order."""
        sizes = [len(spans) for _, spans in cuts]
        ordinals = np.repeat(np.array([ordinal for ordinal, _ in cuts], np.int64), sizes)
        spans = np.concatenate([NO_SPANS, *(spans for _, spans in cuts)])
        self._file.write_batch(pa.record_batch([ordinals, spans[:, 0], spans[:, 1]], schema=_RECORDED))


class Piece(NamedTuple):
    """Bytes of a text that stay, and what joins them to those before."""

    begin: int
    end: int
    joint: bytes


def left_of(data: bytes, spans: Spans) -> tuple[bytes, list[Piece]]:
    """What is left of a text without these spans, and the pieces of it.

    Whole lines leave no gap, nor two empty lines in a row. Elsewhere an empty line stands between the pieces: they
    are not one sentence.
    """
    pieces, tail = list[Piece](), b"\n\n"  # of what stays so far, as at the beginning of a text
    at, are_lines = 0, True
    for begin, end in [*merged(spans).tolist(), (len(data), len(data))]:
        are_next = (not begin or data[begin - 1] == NEWLINE) and (end == len(data) or data[end - 1] == NEWLINE)
        piece = _stripped(data, at, begin, are_lines, tail == b"\n\n", are_next)
        if piece is not None:
            joint = b"" if are_lines else b"\n\n"[len(tail) - len(tail.rstrip(b"\n")) :]
            pieces.append(Piece(*piece, joint))
            tail = (tail + joint + data[piece[0] : piece[1]][-2:])[-2:]
            are_lines = True
        at, are_lines = end, are_lines and are_next
    return _joined(data, pieces), pieces


def _stripped(
    data: bytes, begin: int, end: int, are_lines: bool, is_apart: bool, are_next: bool
) -> tuple[int, int] | None:
    """A piece without the blanks at its sides that the cuts there leave over; None if it has nothing else."""
    piece = data[begin:end]
    if not are_lines:
        piece = piece.lstrip(SPACES)
    elif is_apart and begin:
        piece = piece.lstrip(b"\n")
    begin = end - len(piece)
    if not are_next:
        piece = piece.rstrip(SPACES)
    return (begin, begin + len(piece)) if piece else None


def _joined(data: bytes, pieces: list[Piece]) -> bytes:
    """The pieces as one text, which ends as the whole one did; drops pieces at the end that are blank."""
    while pieces and not data[pieces[-1].begin : pieces[-1].end].strip(SPACES):
        pieces.pop()
    text = b"".join(piece.joint + data[piece.begin : piece.end] for piece in pieces)
    if not pieces or pieces[-1].end == len(data):
        return text
    return text.rstrip(SPACES) + (b"\n" if data.endswith(b"\n") else b"")


def merged(spans: Spans) -> Spans:
    """Spans in order, those that meet as one."""
    if len(spans) < 2:
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    is_first = np.append(True, spans[1:, 0] > reach[:-1])
    firsts = np.flatnonzero(is_first)
    return np.stack([spans[firsts, 0], reach[np.append(firsts[1:], len(spans)) - 1]], axis=1)


def without_cuts(documents: pa.Table, stretch: CutStretch) -> pa.Table:
    """Documents of a stretch without what is cut from them: `text`, `text_bytes` and `pii_spans` change, as far as
    they are there. All other columns are those of the text as it was tagged."""
    if "text" not in documents.column_names or not stretch.files:
        return documents
    cuts, changed = spans_of(stretch), dict[str, list[Any]]()
    is_cut = np.isin(documents["ordinal"].to_numpy(), cuts.ordinals)
    own = documents.filter(pa.array(is_cut))
    has_spans = "pii_spans" in own.column_names
    for row in own.select(["ordinal", "text", *["pii_spans"] * has_spans]).to_pylist():
        data = row["text"].encode()
        text, pieces = left_of(data, cuts.of(row["ordinal"]))
        changed.setdefault("text", []).append(text.decode())
        changed.setdefault("text_bytes", []).append(len(text))
        if has_spans:
            changed.setdefault("pii_spans", []).append(list(_moved(row["pii_spans"] or (), data, pieces)))
    for name, values in changed.items():
        if (at := documents.schema.get_field_index(name)) >= 0:
            documents = documents.set_column(at, documents.schema.field(at), _replaced(documents[name], is_cut, values))
    return documents


def with_passages(documents: pa.Table, tagged: pa.Table, stretch: CutStretch) -> pa.Table:
    """Documents of a stretch with the column `CUTS`; `tagged` has the texts of the stretch before."""
    cuts = [(own.step, own.read()) for own in stretch.files]
    ordinals = documents["ordinal"].to_numpy()
    is_cut = np.isin(ordinals, np.concatenate([np.zeros(0, np.int64), *(own.ordinals for _, own in cuts)]))
    column: list[Any] = [None] * len(documents)
    for at in np.flatnonzero(is_cut).tolist():
        text = tagged["text"][int(ordinals[at]) - stretch.first].as_py()
        column[at] = list(_passages(text.encode(), int(ordinals[at]), cuts))
    return documents.append_column(CUTS, pa.array(column, CUTS.type))


def _passages(data: bytes, ordinal: int, cuts: Sequence[tuple[str, StretchCuts]]) -> Iterator[dict[str, Any]]:
    chars = _chars_before(data)
    found = sorted((begin, end, step) for step, own in cuts for begin, end in own.of(ordinal).tolist())
    for begin, end, step in found:
        passage = data[begin:end].decode()
        yield {"step": step, "begin": int(chars[begin]), "end": int(chars[end]), "text": passage}


def _chars_before(data: bytes) -> NDArray[np.int64]:
    """The number of characters that begin before each byte of a text, and in all of it."""
    return np.append(0, np.cumsum((np.frombuffer(data, np.uint8) & 0xC0) != 0x80))


def _moved(spans: Sequence[dict[str, Any]], data: bytes, pieces: Sequence[Piece]) -> Iterator[dict[str, Any]]:
    """Spans of characters where they are now; without those that are cut. Those of other columns stay."""
    chars, new = _chars_before(data), 0
    places: list[tuple[int, int, int]] = []
    for piece in pieces:
        new += len(piece.joint)
        begin, end = int(chars[piece.begin]), int(chars[piece.end])
        places.append((begin, end, new - begin))
        new += end - begin
    for span in spans:
        for begin, end, by in places:
            if begin <= span["begin"] and span["end"] <= end and span["column"] == "text":
                yield span | {"begin": span["begin"] + by, "end": span["end"] + by}
    yield from (span for span in spans if span["column"] != "text")


def _replaced(column: pa.ChunkedArray, where: NDArray[np.bool_], values: list[Any]) -> pa.Array:
    """The column with other values where `where` is set."""
    places = np.arange(len(column))
    places[where] = len(column) + np.arange(len(values))
    return pa.concat_arrays([*column.chunks, pa.array(values, column.type)]).take(pa.array(places))
