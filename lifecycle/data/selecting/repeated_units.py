"""Lines and paragraphs that stand in many documents: menus, notices, footers. The first documents keep them.

CCNet removes every paragraph that it has seen before (Wenzek et al. 2020, arXiv:1911.00359, section 3.1), Dolma too
(Soldaini et al. 2024, arXiv:2402.00159, section 3.1.3); C4 spans of three sentences (Raffel et al. 2020,
arXiv:1910.10683, section 2.2). They compare documents of a shard or by a Bloom filter, which errs; here all documents
are compared, exactly, and a unit may stand in some documents before it counts as boilerplate. Units are the same if
their words are, in order, whatever their case, punctuation and spaces. One that ends in a colon stays, with what it
announces ("Traceback (most recent call last):").
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lifecycle.data.selecting.cuts import NO_SPANS, Spans
from lifecycle.data.selecting.document_text import DocumentText, Lines
from lifecycle.data.selecting.repeats import Keys, Places, Repeats

# A shorter line is a heading, a name or a "yes": that it stands elsewhere too says nothing of where it is from.
LEAST_WORDS = 3


@dataclass(frozen=True)
class UnitKeys:
    """The keys of a document's lines or paragraphs, each once; their place is the document."""

    of: Literal["lines", "paragraphs"]

    def __call__(self, text: DocumentText) -> tuple[Keys, Places]:
        """Keys and places."""
        keys = np.unique(self.units(text)[0], axis=0)
        return keys, np.full(len(keys), text.ordinal, np.int64)

    def units(self, text: DocumentText) -> tuple[Keys, Spans]:
        """The units that may be cut: their keys, and the bytes of each."""
        from lifecycle.data.selecting.compiled_passages import hash_runs

        spans = _prose_lines(text.lines) if self.of == "lines" else _paragraphs(text.lines)
        spans = spans[~text.is_cut(spans[:, 0])]
        lows, highs = np.searchsorted(text.words.begins, spans[:, 0]), np.searchsorted(text.words.begins, spans[:, 1])
        is_long = highs - lows >= LEAST_WORDS
        keys = np.empty((int(is_long.sum()), 2), np.uint64)
        hash_runs(text.words.hashes, lows[is_long], highs[is_long], keys)
        return keys, spans[is_long]


@dataclass(frozen=True)
class RepeatedUnits:
    """The lines or paragraphs of a document that enough documents before it have."""

    keys: UnitKeys
    repeats: Repeats

    def __call__(self, text: DocumentText) -> Spans:
        """The bytes of each."""
        keys, spans = self.keys.units(text)
        spans = spans[self.repeats.last_places(keys) < text.ordinal]
        announces = [text.data[begin:end].tobytes().rstrip().endswith(b":") for begin, end in spans.tolist()]
        return spans[~np.array(announces, bool)]


def _prose_lines(lines: Lines) -> Spans:
    from lifecycle.data.selecting.compiled_passages import PROSE

    is_prose = lines.kinds == PROSE
    return np.stack([lines.begins[is_prose], lines.ends[is_prose]], axis=1)


def _paragraphs(lines: Lines) -> Spans:
    """Runs of lines without a blank one, each with the blank lines behind it; not those with code among them."""
    from lifecycle.data.selecting.compiled_passages import BLANK, CODE

    is_text = lines.kinds != BLANK
    firsts = np.flatnonzero(is_text & ~np.append(False, is_text[:-1]))
    if not len(firsts):
        return NO_SPANS
    begins = lines.begins[firsts]
    has_code = np.logical_or.reduceat(lines.kinds == CODE, firsts)
    return np.stack([begins, np.append(begins[1:], lines.ends[-1])], axis=1)[~has_code]
