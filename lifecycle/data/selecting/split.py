"""The held-out split: by document, keyed by content and seed.

A document's side depends on its own text and the seed, not on its position or its neighbours: a corpus that grows keeps
its old split. Three exceptions: a source whose expected share is one document or more but that gets none gives the
document nearest to the threshold, so that every sizeable source is measured; a tiny corpus still gets both sides; and a
corpus of many gigabytes holds out no more text than measures something (`heldout_flags`). Duplicates are already
removed, so none straddles the split.
"""

import numpy as np
from numpy.typing import NDArray

from lifecycle.core.config import ConfigError
from lifecycle.data.mixing import mixed

LEAST_HELDOUT = 2  # a confidence interval of bits per byte needs two documents

type Numbers = NDArray[np.int64]


def heldout_flags(
    positions: NDArray[np.float64], sources: Numbers, sizes: Numbers, fraction: float, most_bytes: int
) -> NDArray[np.bool_]:
    """Whether each document is held out; at least two are (of two documents one), and at least one is not.

    `positions` as by `split_positions`; `sources`: the number of each document's source; `sizes`: the bytes of its
    text, of which `most_bytes` are held out, those of the lowest positions. Raises `ConfigError` for fewer than two
    documents.
    """
    if len(positions) < 2:
        raise ConfigError(
            f"{len(positions) or 'no'} document is left to split into training and held-out text: by then the rules' "
            "failures, duplicates, what data.dedup.against has and what data.dedup.max_cut removes are gone; add to "
            "data.sources, or change these settings"
        )
    flags = positions < fraction
    drawn = np.flatnonzero(flags)
    drawn = drawn[np.argsort(positions[drawn], kind="stable")]
    flags[drawn[np.cumsum(sizes[drawn]) > most_bytes]] = False
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


def split_positions(contents: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each hash of a content, uniform over hashes and different for each seed."""
    return (mixed(contents ^ mixed(np.full(1, seed, np.uint64))) >> np.uint64(11)) / 2.0**53
