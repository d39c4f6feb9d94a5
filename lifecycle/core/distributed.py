"""A job of several processes: start-up, and which process writes.

`launch/` starts the processes and passes each the coordinator's address, their number and its own index in environment
variables; with `LIFECYCLE_DISTRIBUTED=auto` JAX detects them (Slurm, GKE, TPU pods). All share one file system. JAX is
imported only in a job, so that a process that computes nothing does not wait for it.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping

from lifecycle.core.artifact import code_version
from lifecycle.core.config import ConfigError
from lifecycle.core.rendezvous import Member, meet

LONGEST_NAME = 256  # bytes of a host's name


def in_job() -> bool:
    """Whether the environment says that this process is part of a job."""
    return os.environ.get("LIFECYCLE_DISTRIBUTED") == "auto" or "LIFECYCLE_COORDINATOR" in os.environ


def has_joined() -> bool:
    """Whether this process has joined a job; asking imports nothing."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def start(facts: Mapping[str, str] | None = None) -> None:
    """Joins the job that the environment describes; does nothing without one, or if it has joined already.

    `facts` must be the same in all processes, as their code and libraries must. Raises `JobError` if they are not, or
    if a process is missing.
    """
    if not in_job() or has_joined():
        return
    import jax

    if os.environ.get("LIFECYCLE_DISTRIBUTED") == "auto":
        jax.distributed.initialize()
        return
    try:
        count, index = int(os.environ["LIFECYCLE_NUM_PROCESSES"]), int(os.environ["LIFECYCLE_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "LIFECYCLE_COORDINATOR is set, so LIFECYCLE_NUM_PROCESSES and LIFECYCLE_PROCESS_ID must be numbers "
            f"(launch/local.sh sets all three): {error}"
        ) from None
    address = os.environ["LIFECYCLE_COORDINATOR"]
    meet(address, count, Member(index, platform.node(), _own_facts() | dict(facts or {})))
    # bound to this address alone: by default JAX's coordinator listens on every interface
    jax.distributed.initialize(address, num_processes=count, process_id=index, coordinator_bind_address=address)


def _own_facts() -> dict[str, str]:
    """What must be the same in all processes whatever they run."""
    libraries = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"code": code_version(), "python": platform.python_version(), **libraries}


def host_names() -> list[str]:
    """The host names of the job's processes, sorted; all processes make the same call."""
    import jax

    if jax.process_count() == 1:
        return [platform.node()]
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.zeros(LONGEST_NAME, np.uint8)
    name = platform.node().encode()[:LONGEST_NAME]
    own[: len(name)] = np.frombuffer(name, np.uint8)
    names = multihost_utils.process_allgather(own)
    return sorted({bytes(row).rstrip(b"\0").decode() for row in names})


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
