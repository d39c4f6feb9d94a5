"""A job of several processes: start-up, which process writes, and which one speaks.

The environment says whether this process is part of a job, and of which (`core/environments.py`). All share one file
system. JAX is imported only in a job, so that a process that computes nothing does not wait for it.
"""

import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lifecycle.core import preemption
from lifecycle.core.artifact import code_version
from lifecycle.core.environments import EXPLICIT, SWITCH, Place, find_place
from lifecycle.core.rendezvous import JobError, Member, meet

LONGEST_NAME = 256  # bytes of a host's name
LONGEST_ERROR = 4000  # characters that process 0 is told
JAX_START_S = 60  # all have met: nothing is left to wait for
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # of gRPC, which documents them with those below
NO_PROXIES = ("no_grpc_proxy", "no_proxy")
ERROR_KEY = "lifecycle/error"
SHOWN_S = 2.0


def has_joined() -> bool:
    """Whether this process has joined a job; asking imports nothing."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def start(facts: Mapping[str, str] | None = None) -> None:
    """Joins the job that the environment describes; does nothing without one, or if it has joined already.

    `facts` must be the same in all processes, as their code and libraries must. Raises `JobError` if they are not, or
    if a process is missing or has an error; `ConfigError` for an environment that leaves this process's place open.
    """
    if has_joined() or (place := find_place()) is None:
        return
    address = _meet(place, Member(place.index, platform.node(), _own_facts() | dict(facts or {})))
    import jax

    reach_directly(address)
    # Bound to this address alone: by default JAX's coordinator listens on every interface. Without `deactivate` JAX
    # asks the launcher too, and would use one GPU of each process that Slurm or Open MPI has started.
    jax.distributed.initialize(
        address, place.count, place.index, coordinator_bind_address=address, cluster_detection_method="deactivate",
        initialization_timeout=JAX_START_S,
    )  # fmt: skip
    preemption.set_aside()


def reach_directly(address: str) -> None:
    """Leaves the coordinator out of the web proxy of a cluster that has one: gRPC would wait for it there in vain."""
    if not any(name in os.environ for name in PROXIES):
        return
    before = os.environ.get(NO_PROXIES[0]) or os.environ.get(NO_PROXIES[1])
    host = address.rpartition(":")[0].strip("[]")
    os.environ[NO_PROXIES[0]] = f"{before},{host}" if before else host
    import jax

    jax.config.update("jax_check_proxy_envs", False)  # a warning of each process


@contextmanager
def errors_are_shared() -> Generator[None]:
    """An error that this process finds before it has joined, such as a setting that only its host refuses, is told to
    all processes of the job: they end too, and process 0 says whose it is, once if all have the same."""
    try:
        yield
    except JobError:
        raise
    except ValueError as error:
        place = None if has_joined() else find_place()
        if place is not None:
            _meet(place, Member(place.index, platform.node(), error=str(error)[:LONGEST_ERROR]))
        raise


def _meet(place: Place, own: Member) -> str:
    try:
        return meet(place.address, place.count, own, hosts=place.hosts)
    except JobError as error:
        if error.is_told:
            raise
        unsaid = f"{own.error}; " if own.error and own.index else ""  # as process 0 has not been told
        why = f" (a job by the variables of {place.environment}; {SWITCH}=off is for a process that works alone)"
        message = f"{unsaid}{error}{'' if own.error or place.environment == EXPLICIT else why}"
        raise JobError(message, is_lost=error.is_lost and not own.error) from None


def speaker() -> str:
    """What an error of this process begins with: nothing in process 0 and outside of a job."""
    index = process_index()
    return f"process {index} on {platform.node()}: " if index else ""


def show_error(message: str) -> None:
    """Process 0 has said why it ends: the others of its job may look it up, for a moment, before they end too."""
    words_of_job().key_value_set(ERROR_KEY, message, allow_overwrite=True)
    time.sleep(SHOWN_S)


def is_shown_by_first(message: str) -> bool:
    """Whether process 0 of this job ends with the same message, now or within a moment."""
    import jax

    try:
        return words_of_job().blocking_key_value_get(ERROR_KEY, int(SHOWN_S * 1000)) == message
    except jax.errors.JaxRuntimeError:  # it has no error, or is gone
        return False


def words_of_job() -> Any:
    """The keys and values that the processes of a job set and read, in JAX's service, which has no public name."""
    from jax._src.distributed import global_state

    assert global_state.client is not None, "not in a job"
    return global_state.client


def coordinator_host() -> str:
    """The address of process 0's host, as a number, at which its service listens."""
    from jax._src.distributed import global_state

    assert global_state.coordinator_address is not None, "not in a job"
    return global_state.coordinator_address.rpartition(":")[0].strip("[]")


def process_count() -> int:
    """The number of processes of the job that this one has joined; 1 outside of one."""
    return sys.modules["jax"].process_count() if has_joined() else 1


def process_index() -> int:
    """This process's index in its job, also before it has joined; 0 outside of one."""
    if has_joined():
        return sys.modules["jax"].process_index()
    try:
        place = find_place()
    except ValueError:  # it is reported where the job starts
        return 0
    return 0 if place is None else place.index


def _own_facts() -> dict[str, str]:
    """What must be the same in all processes whatever they run."""
    libraries = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"code": f"{code_version()} ({_code_hash()})", "python": platform.python_version(), **libraries}


def _code_hash() -> str:
    """A short hash of the package's Python files: where code is copied without git, or edited, its version is the same
    for different code."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        total.update(f"{file.relative_to(package).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def host_names(*, where: bool = True) -> list[str]:
    """The host names of the job's processes, sorted: of those that say `where`. All processes make the same call."""
    import jax

    if jax.process_count() == 1:
        return [platform.node()] if where else []
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.zeros(LONGEST_NAME, np.uint8)
    name = platform.node().encode()[:LONGEST_NAME] if where else b""
    own[: len(name)] = np.frombuffer(name, np.uint8)
    names = multihost_utils.process_allgather(own)
    return sorted({bytes(row).rstrip(b"\0").decode() for row in names} - {""})


def from_writer[T: (bool, int)](value: T) -> T:
    """The writing process's value, in all processes of a job; all make the same call."""
    if "jax" not in sys.modules:
        return value
    import jax

    if jax.process_count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    return type(value)(multihost_utils.broadcast_one_to_all(np.array(value)))


def is_writer() -> bool:
    """Whether this process writes what is written once per job; a process without JAX is in no job."""
    if "jax" not in sys.modules:
        return True
    import jax

    return jax.process_index() == 0
