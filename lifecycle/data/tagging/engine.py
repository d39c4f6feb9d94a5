"""Where a data stage does its work: in processes of this machine, or on a Ray cluster. The result is the same.

On Ray the run's folder and the sources lie on a file system that all nodes share, and this package is installed there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self

from lifecycle.core.cores import available_cores
from lifecycle.core.progress import Progress
from lifecycle.data.config import DataConfig
from lifecycle.data.tagging.workers import WorkerDiedError, Workers

# Below this a single worker is this process: another would take 2 s to start, of 8 for 20 MB.
APART_BYTES = 200_000_000
POOL_BYTES = 3_000_000  # below this, starting worker processes takes longer than the work (0.6 s each, 1 MB/s)


class Engine(Protocol):
    """Does independent pieces of work; `address` is that of a Ray cluster, None on this machine. A context manager,
    which ends what it has started."""

    @property
    def address(self) -> str | None:
        """Of the Ray cluster."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether this process does all work itself, and ends with what ends it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def results[T, R](
        self, function: Callable[[T], R], work: Sequence[T], attempts: int, apart: bool = False
    ) -> Iterator[tuple[int, R | WorkerDiedError]]:
        """Yields the number of each item and `function(item)` as they are ready. An item whose process dies is done
        again, up to `attempts` times in all. `apart`: what may end its process; where there are others, this one does
        none of it."""
        ...


class Native(Workers):
    """So many processes of this machine."""

    address = None


def engine_of(config: DataConfig, num_bytes: int) -> Engine:
    """The engine that the settings name; on this machine this process alone if there is little to do, and never if
    there is much: what ends the process that reads it must not end the run."""
    if config.engine == "ray":
        from lifecycle.data.tagging.ray_engine import RayCluster

        return RayCluster(config.ray_address)
    count = config.workers or (available_cores() if num_bytes > POOL_BYTES else 1)
    return Native(count, apart=num_bytes > APART_BYTES)


def ordered_results[T, R](
    engine: Engine, function: Callable[[T], R], work: Sequence[T], progress: Progress, name: str
) -> list[R]:
    """`function(item)` of each item, in their order, shown as `name`. Raises `WorkerDiedError` for one whose process
    dies twice."""
    progress.start(name, len(work))
    found: dict[int, R] = {}
    for number, result in engine.results(function, work, attempts=2):
        if isinstance(result, WorkerDiedError):
            raise result.of(name)
        found[number] = result
        progress.update(len(found))
    return [found[number] for number in range(len(work))]
