"""Several processes as one job: start-up, and who writes.

`launch/` starts the processes and tells them of each other by three environment variables, or leaves it to what JAX
finds by itself (Slurm, GKE, TPU pods) with `LIFECYCLE_DISTRIBUTED=auto`. All processes share one file system.
"""

import os

import jax

from lifecycle.core.config import ConfigError


def start() -> None:
    """Joins the job that the environment describes; does nothing where it describes none."""
    if os.environ.get("LIFECYCLE_DISTRIBUTED") == "auto":
        jax.distributed.initialize()
        return
    coordinator = os.environ.get("LIFECYCLE_COORDINATOR")
    if coordinator is None:
        return
    try:
        count, index = int(os.environ["LIFECYCLE_NUM_PROCESSES"]), int(os.environ["LIFECYCLE_PROCESS_ID"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "LIFECYCLE_COORDINATOR is set, so LIFECYCLE_NUM_PROCESSES and LIFECYCLE_PROCESS_ID must be numbers "
            f"(launch/local.sh sets all three): {error}"
        ) from None
    jax.distributed.initialize(coordinator, num_processes=count, process_id=index)


def is_writer() -> bool:
    """Whether this process writes what is written once per job."""
    return jax.process_index() == 0
