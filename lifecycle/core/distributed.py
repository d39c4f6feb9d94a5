"""Several processes as one job: start-up, and who writes.

`launch/` starts the processes and tells them of each other by three environment variables, or leaves it to what JAX
finds by itself (Slurm, GKE, TPU pods) with `LIFECYCLE_DISTRIBUTED=auto`. All processes share one file system. JAX is
imported in a job only, so that a process that computes nothing never waits for it.
"""

import os
import sys

from lifecycle.core.config import ConfigError


def in_job() -> bool:
    """Whether the environment says that this process is one of a job's."""
    return os.environ.get("LIFECYCLE_DISTRIBUTED") == "auto" or "LIFECYCLE_COORDINATOR" in os.environ


def start() -> None:
    """Joins the job that the environment describes; does nothing where it describes none."""
    if not in_job():
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
    jax.distributed.initialize(os.environ["LIFECYCLE_COORDINATOR"], num_processes=count, process_id=index)


def is_writer() -> bool:
    """Whether this process writes what is written once per job; one that has not imported JAX is in no job."""
    if "jax" not in sys.modules:
        return True
    import jax

    return jax.process_index() == 0
