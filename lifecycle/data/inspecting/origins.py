"""Where passages that were cut from a document stay: the first document that still has each.

It is not kept beside the cuts, of which there may be millions: it is found when somebody asks for one document, by the
hashes with which the steps compare passages. Texts are read up to the last of them, a few at a time.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.selected import read_parts
from lifecycle.data.placed_words import Words, words_of
from lifecycle.data.selecting.cuts import NO_SPANS
from lifecycle.data.selecting.cutting import LINES, PARAGRAPHS, SUBSTRINGS
from lifecycle.data.selecting.document_text import CODE_FORMAT, DocumentText
from lifecycle.data.selecting.repeated_units import UnitKeys

_TEXTS: tuple[Split, ...] = ("kept", "heldout")
_UNITS = {LINES: UnitKeys("lines"), PARAGRAPHS: UnitKeys("paragraphs")}

type Keys = dict[bytes, int]  # of passages: the hash of their words, and that of the first word


@dataclass(frozen=True)
class Holders:
    """The documents, as `source:path`, that have passages which steps cut elsewhere, by the step and by what it knows
    a passage by."""

    found: Mapping[tuple[str, bytes], str]
    num_words: int  # by which a run of words is known

    def of(self, cut: Mapping[str, Any]) -> str | None:
        """The first document that still has a passage, of `cuts`; None for one of another step, or if none is left."""
        key = _key(cut, self.num_words)
        return None if key is None else self.found.get((cut["step"], key[0]))


def find_holders(folder: Path, cuts: Collection[Mapping[str, Any]], config: DedupConfig) -> Holders:
    """Looks for the passages of some documents, entries of their column `cuts`, among those that were not removed of an
    artifact of stage `documents`; `config` has the settings by which it was made."""
    num_words = config.substrings or 0
    missing: dict[str, Keys] = {}
    for cut in cuts:
        if (key := _key(cut, num_words)) is not None:
            missing.setdefault(cut["step"], {})[key[0]] = key[1]
    found: dict[tuple[str, bytes], str] = {}
    for name, text in _texts(folder) if missing else ():
        for step, keys in missing.items():
            for key in _keys_of(text, step, keys, num_words) & keys.keys():
                found[step, key] = name
                del keys[key]
        if not any(missing.values()):
            break
    return Holders(found, num_words)


def _texts(folder: Path) -> Iterator[tuple[str, DocumentText]]:
    """The documents that are not code, with their names, as they were written."""
    for part in read_parts(folder, ("source", "path", "format", "text"), _TEXTS):
        sources, paths, formats = (part.rows[name].to_pylist() for name in ("source", "path", "format"))
        data, ends = utf8(part.rows["text"])
        for at, (source, path) in enumerate(zip(sources, paths, strict=True)):
            if formats[at] != CODE_FORMAT:
                yield f"{source}:{path}", DocumentText(0, data[ends[at] : ends[at + 1]], NO_SPANS)


def _key(cut: Mapping[str, Any], num_words: int) -> tuple[bytes, int] | None:
    """What a passage is known by: the hash of its words, of a run of words of the first ones; and the first word's."""
    words = words_of(np.frombuffer(cut["text"].encode(), np.uint8))
    if not len(words) or cut["step"] not in (*_UNITS, SUBSTRINGS):
        return None
    size = len(words) if cut["step"] in _UNITS else min(num_words, len(words))
    (key,) = _hashed(words, np.zeros(1, np.int64), size)
    return key, int(words.hashes[0])


def _keys_of(text: DocumentText, step: str, wanted: Keys, num_words: int) -> set[bytes]:
    """What the passages of a text are known by; runs of words only if they begin with a wanted one's first word."""
    if step in _UNITS:
        return {key.tobytes() for key in _UNITS[step].units(text)[0]}
    firsts = np.fromiter(set(wanted.values()), np.uint64)
    begins = np.flatnonzero(np.isin(text.words.hashes[: max(0, len(text.words) - num_words + 1)], firsts))
    return {*_hashed(text.words, begins, num_words)}


def _hashed(words: Words, begins: NDArray[np.int64], size: int) -> Sequence[bytes]:
    from lifecycle.data.selecting.compiled_passages import hash_runs

    keys = np.empty((len(begins), 2), np.uint64)
    hash_runs(words.hashes, begins, begins + size, keys)
    return [key.tobytes() for key in keys]
