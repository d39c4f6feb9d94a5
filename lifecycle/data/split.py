"""The held-out split: by document, keyed by content and seed.

A document's side depends on its own text and the seed, not on its position or its neighbours: a corpus that grows keeps
its old split. Two exceptions: a source whose expected share is one document or more but that gets none gives the
document nearest to the threshold, so that every sizeable source is measured; and a tiny corpus still gets both sides
(`heldout_flags`). Duplicates are already removed, so none straddles the split.
"""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.config import ConfigError

LEAST_HELDOUT = 2  # a confidence interval of bits per byte needs two documents


def heldout_flags(documents: pa.Table, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Whether each document is held out; at least two are (of two documents one), and at least one is not.

    Reads the columns `text` and `source`. Raises `ConfigError` for fewer than two documents.
    """
    if len(documents) < 2:
        raise ConfigError(
            f"{len(documents)} document left to split into training and held-out text; add to data.sources"
        )
    positions = np.array([split_position(text, seed) for text in documents["text"].to_pylist()])
    sources = documents["source"].to_numpy()
    flags = positions < fraction
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        if len(own) * fraction >= 1 and not flags[own].any():
            flags[own[positions[own].argmin()]] = True
    missing = max(0, min(LEAST_HELDOUT, len(flags) - 1) - int(flags.sum()))  # in a corpus of a few documents
    likeliest = np.argsort(np.where(flags, np.inf, positions), kind="stable")
    flags[likeliest[:missing]] = True
    if flags.all():
        flags[positions.argmax()] = False
    return flags


def split_position(text: str, seed: int) -> float:
    """A number in [0, 1) from a text and a seed, uniform over texts."""
    digest = hashlib.sha256(f"{seed}\0".encode() + text.encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
