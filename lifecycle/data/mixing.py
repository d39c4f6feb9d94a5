"""Numbers that mix bits: factors for hashes, and splitmix64."""

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, odd
MIX = np.uint64(0xD6E8FEB86659FD93)  # of Degski's hash; its upper bits of a product depend on all of a value's


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64 of each value: one-to-one, and its values look random (Steele et al. 2014, OOPSLA)."""
    state = values + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
