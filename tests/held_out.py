"""Held-out documents without files."""

from collections.abc import Iterable, Sequence

import numpy as np


class Sources(list[np.ndarray]):
    """Token ids of documents; `sources`: each one's, in order."""

    def __init__(self, documents: Iterable[np.ndarray], sources: Sequence[str]) -> None:
        super().__init__(documents)
        self._sources = np.array(sources)

    def domains(self) -> dict[str, np.ndarray]:
        """As of token shards."""
        return {str(name): np.flatnonzero(self._sources == name) for name in np.unique(self._sources)}


def one_source(documents: Iterable[np.ndarray]) -> Sources:
    """Documents that are all of one source."""
    listed = list(documents)
    return Sources(listed, ["only"] * len(listed))
