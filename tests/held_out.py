"""Held-out documents without files."""

import numpy as np


class OneSource(list[np.ndarray]):
    """Token ids of documents that are all of one source."""

    def domains(self, first: int) -> dict[str, np.ndarray]:
        """No source to tell from others, as of token shards with one source."""
        return {}
