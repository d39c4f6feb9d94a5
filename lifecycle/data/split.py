"""The held-out split: by document, keyed by content and seed.

A document's side depends on its own text and the seed, not on its place or its neighbours: a corpus that grows keeps
its old split. One exception: a source that should give a document or more and by chance gives none gives the one
nearest to the threshold, so that every sizeable source is measured. Duplicates are gone by now, so none straddles it.
"""

import hashlib
from collections.abc import Sequence

from lifecycle.core.config import ConfigError
from lifecycle.data.documents import Document

LEAST_HELDOUT = 2  # an interval of bits per byte needs two documents


def heldout_flags(documents: Sequence[Document], fraction: float, seed: int) -> list[bool]:
    """Per document, whether it is held out; at least two are (one of two documents), and at least one is not.

    Raises `ConfigError` for fewer than two documents.
    """
    if len(documents) < 2:
        raise ConfigError(
            f"{len(documents)} document left to split into training and held-out text; add to data.sources"
        )
    places = [split_place(document.text, seed) for document in documents]
    flags = [place < fraction for place in places]
    members: dict[str, list[int]] = {}
    for at, document in enumerate(documents):
        members.setdefault(document.source, []).append(at)
    for own in members.values():
        if len(own) * fraction >= 1 and not any(flags[at] for at in own):
            flags[min(own, key=places.__getitem__)] = True
    unlikely = sorted((at for at, flag in enumerate(flags) if not flag), key=places.__getitem__)
    for at in unlikely[: max(0, min(LEAST_HELDOUT, len(flags) - 1) - sum(flags))]:  # a corpus of a few documents
        flags[at] = True
    if all(flags):
        flags[places.index(max(places))] = False
    return flags


def split_place(text: str, seed: int) -> float:
    """A number in [0, 1) from a text and a seed, evenly spread over texts."""
    digest = hashlib.sha256(f"{seed}\0".encode() + text.encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
