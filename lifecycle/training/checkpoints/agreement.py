"""What the processes of a job know together. All processes make the same calls; one alone is asked nothing."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def sync(what: str) -> None:
    """Waits for all processes of the job."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gathered(own: Any) -> np.ndarray:
    """Every process's array or number, on a leading axis."""
    if jax.process_count() == 1:
        return np.asarray(own)[None]
    return np.asarray(multihost_utils.process_allgather(own))


def from_first[T](own: T | None) -> T | None:
    """The JSON-ready value of the first process that has one, in all processes; None if none has."""
    if jax.process_count() == 1:
        return own
    text = b"" if own is None else json.dumps(own).encode()
    sizes = gathered(np.int32(len(text)))
    if not sizes.any():
        return None
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    first = int(np.flatnonzero(sizes)[0])
    return json.loads(gathered(padded)[first, : sizes[first]].tobytes())
