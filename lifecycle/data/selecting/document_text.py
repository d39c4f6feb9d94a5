"""The text of a document as a step sees it that cuts passages: its lines and words, less what earlier steps have cut.

Source code is never cut: neither documents whose format is code nor blocks of code in others, as Markdown and
reStructuredText mark them (a line that is missing breaks a program). Places are bytes of the text as it was tagged,
whatever has been cut since.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.documents import Flags
from lifecycle.data.placed_words import Words, words_of
from lifecycle.data.selecting.cuts import NEWLINE, SPACES, CutStretch, Spans, spans_of

CODE_FORMAT = "code"


class Lines(NamedTuple):
    """The lines of a text, each with its newline, and their kinds (`compiled_passages.py`)."""

    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    kinds: NDArray[np.uint8]


@dataclass(frozen=True)
class DocumentText:
    """A document that may be cut; `cut`: what earlier steps have cut from it, in order."""

    ordinal: int
    data: NDArray[np.uint8]
    cut: Spans

    @cached_property
    def lines(self) -> Lines:
        """All lines of the text as it was tagged."""
        from lifecycle.data.selecting.compiled_passages import find_lines

        most = int((self.data == ord("\n")).sum()) + 1
        begins, kinds = np.empty(most, np.int64), np.empty(most, np.uint8)
        num = find_lines(self.data, begins, kinds)
        begins = begins[:num]
        return Lines(begins, np.append(begins[1:], len(self.data)).astype(np.int64)[:num], kinds[:num])

    @cached_property
    def words(self) -> Words:
        """All words of the text as it was tagged."""
        return words_of(self.data)

    @cached_property
    def fixed(self) -> Spans:
        """What may not be part of a passage: code, and what is cut already."""
        from lifecycle.data.selecting.compiled_passages import CODE

        is_code = self.lines.kinds == CODE
        code = np.stack([self.lines.begins[is_code], self.lines.ends[is_code]], axis=1)
        both = np.concatenate([code, self.cut])
        return both[np.argsort(both[:, 0], kind="stable")]

    def room(self, part: int) -> tuple[int, int]:
        """The bytes between what is fixed, behind so many spans of it."""
        begin = int(self.fixed[:part, 1].max()) if part else 0
        return begin, int(self.fixed[part, 0]) if part < len(self.fixed) else len(self.data)

    def is_cut(self, begins: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether these places are cut already."""
        return within(begins, self.cut)[0]


def within(places: NDArray[np.integer], spans: Spans) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each place lies in one of these spans, in order; and how many of them begin before it."""
    before = np.searchsorted(spans[:, 0], places, side="right")
    ends = np.append(0, np.maximum.accumulate(spans[:, 1]) if len(spans) else spans[:, 1])
    return places < ends[before], before


def widened(data: bytes, begin: int, end: int, floor: int, roof: int) -> tuple[int, int]:
    """A passage with the marks at its sides, between `floor` and `roof`, as far as a blank; with its newline if it is
    whole lines."""
    before, behind = data[floor:begin], data[end:roof]
    is_open = not floor or data[floor - 1] in SPACES
    left = before.lstrip() if not before.strip() else before.split()[-1] if before[-1] not in SPACES else b""
    if is_open or len(left) < len(before):  # not a mark that hangs on the word before
        begin -= len(left)
    right = behind.split()[0] if behind.strip() and behind[0] not in SPACES else b""
    if roof == len(data) or len(right) < len(behind):
        end += len(right)
    if (not begin or data[begin - 1] == NEWLINE) and data[end : end + 1] == b"\n":
        end += 1
    return begin, end


def read_texts(parts: Sequence[tuple[CutStretch, Flags]]) -> Iterator[Iterator[DocumentText]]:
    """The chosen documents of each stretch that are not code."""
    for stretch, chosen in parts:
        yield _texts(stretch, chosen)


def _texts(stretch: CutStretch, chosen: Flags) -> Iterator[DocumentText]:
    documents = stretch.tagged(["text", "format"])
    is_prose = documents["format"].to_numpy() != CODE_FORMAT
    documents, cuts = documents.filter(pa.array(chosen & is_prose)), spans_of(stretch)
    data, offsets = utf8(documents["text"].combine_chunks())
    for at, ordinal in enumerate(documents["ordinal"].to_pylist()):
        yield DocumentText(ordinal, data[offsets[at] : offsets[at + 1]], cuts.of(ordinal))
