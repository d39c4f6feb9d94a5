"""Work on a Ray cluster: a task for each piece. Imported late: Ray is an extra."""

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from lifecycle.core.config import ConfigError
from lifecycle.data.tagging.workers import WorkerDiedError, counted, told


@dataclass(frozen=True)
class RayCluster:
    """The cluster at an address, as `ray.init` takes it."""

    address: str
    is_here = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the cluster as it is: it is not ours."""

    def results[T, R](
        self, function: Callable[[T], R], work: Sequence[T], attempts: int, apart: bool = False
    ) -> Iterator[tuple[int, R | WorkerDiedError]]:
        """See `Engine`; all work is apart. Twice as many tasks as the cluster has cores are on their way at a time."""
        ray = connected(self.address)
        task = ray.remote(max_retries=attempts - 1)(counted)
        given = ray.put(function)  # which may be large, as an object is
        most = 2 * int(ray.cluster_resources().get("CPU", 1))
        waiting, running = deque(range(len(work))), {}
        while waiting or running:
            while waiting and len(running) < most:
                running[task.remote(given, work[waiting[0]])] = waiting[0]
                waiting.popleft()
            for done in ray.wait(list(running))[0]:
                result = _result(ray, done)
                yield running.pop(done), result if isinstance(result, WorkerDiedError) else told(*result)


def connected(address: str) -> Any:
    """Ray, joined to the cluster; raises `ConfigError` if there is none."""
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = str(error).partition("\n")[0]
            raise ConfigError(
                f"data.ray_address={address}: no Ray cluster there ({problem}); start one with `ray start --head`"
            ) from None
    return ray


@cache
def _ray() -> Any:
    # Ray reads these when it is imported: no telemetry, and tasks run in the nodes' own environment, not in a copy.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError("data.engine=ray needs Ray, an extra: install it with `uv sync --extra ray`") from None


def _result(ray: Any, done: Any) -> Any:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    ) as error:
        return WorkerDiedError(f"the process that did it ended: {error}")
