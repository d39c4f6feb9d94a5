"""What the processes of a job know together. All processes make the same calls; one alone is asked nothing."""

import json
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lifecycle.core.distributed import is_writer

TOLD = (OSError, ValueError)  # errors of a file system, of a store, of the storage library, or a lost run


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


class AgreedError(ValueError):
    """What went wrong in one process of the job, raised in all: the message says in which, and what."""


def by_writer(work: Callable[[], Any]) -> Any:
    """What process 0 returns, JSON-ready, in all processes; `AgreedError` in all if that fails (`TOLD`)."""
    answer = from_first(_answer(work) if is_writer() else None)
    assert answer is not None
    return _value(answer)


def together[T](work: Callable[[], T]) -> T:
    """What each process returns; `AgreedError` in all if one fails (`TOLD`), of the first that does."""
    answer = _answer(work)
    return _value(from_first(answer if "error" in answer else None) or answer)


def _answer(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except TOLD as error:
        fix = "; free some space, or repair the folder, and run again" if isinstance(error, OSError) else ""
        return {"error": f"{_speaker()}{error}{fix}"}


def _value(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        raise AgreedError(answer["error"])
    return answer["value"]


def _speaker() -> str:
    return f"process {jax.process_index()} on {platform.node()}: " if jax.process_count() > 1 else ""
