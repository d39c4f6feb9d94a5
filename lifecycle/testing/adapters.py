"""Random low-rank adapters, for the engine and the server."""

import numpy as np

from lifecycle.model.adapters import LowRank, adapted_shapes
from lifecycle.model.config import ModelConfig
from lifecycle.weights.adapters import Adapter, numbers_hash


def random_adapter(config: ModelConfig, seed: int, rank: int) -> Adapter:
    """An adapter of every matrix that can have one, which changes a random model's answers."""
    draws = np.random.default_rng(seed)

    def pair(rows: int, columns: int) -> LowRank:
        a, b = (draws.standard_normal((rank, size), np.float32) for size in (rows, columns))
        return LowRank(a * np.float32(rows**-0.5), b * np.float32(0.1))  # pyrefly: ignore[bad-argument-type] - on host

    matrices = {name: pair(*shape) for name, shape in adapted_shapes(config).items()}
    return Adapter(matrices, numbers_hash(matrices))
