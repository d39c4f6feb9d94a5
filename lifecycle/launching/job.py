"""A run as a cluster's job: its name, its command, its hosts, and how long a save may take when it is stopped."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

from lifecycle.core.config import ConfigError
from lifecycle.launching.hosts import Hosts, hosts_of
from lifecycle.planning.topology import Topology

SHARED = "/shared"  # where a job's claim is mounted, in every container
# A host writes to object storage or a network file system at 200 MB/s and more; half of that leaves room for retries.
SAVE_BYTES_PER_S = 100e6
# The step that runs when the signal comes, the end of an earlier asynchronous save, and the last line of the log.
STOP_S = 60
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
LONGEST_LABEL = 63
POD_SUFFIX = "-x7x7x"  # what Kubernetes appends to a pod's name
IMAGE = re.compile(r"[^\s\x00-\x1f]+")


@dataclass(frozen=True)
class Job:
    """One run on a cluster. `command` is the same on every host, word by word."""

    name: str
    image: str
    command: tuple[str, ...]
    topology: Topology
    state_bytes: int = 0  # parameters and optimizer, of all devices of a replica together
    is_spot: bool = False
    max_restarts: int = 20  # after failures; restarts that were asked for do not count
    claim: str | None = None  # a persistent volume claim, mounted at `SHARED`
    service_account: str | None = None
    queue: str | None = None  # of Kueue

    def __post_init__(self) -> None:
        longest = f"{self.name}-workers-{self.topology.num_slices - 1}-{self.hosts.num_hosts - 1}{POD_SUFFIX}"
        if not DNS_LABEL.fullmatch(self.name) or len(longest) > LONGEST_LABEL:
            room = LONGEST_LABEL - len(longest) + len(self.name)
            raise ConfigError(
                f"--name {self.name!r}: a job's name has a-z, 0-9 and -, begins with a letter, and here at most {room} "
                "characters; choose one with --name"
            )
        if not IMAGE.fullmatch(self.image):
            raise ConfigError(f"--image {self.image!r}: expected an image's name, for example REGISTRY/lifecycle:tpu")

    @cached_property
    def hosts(self) -> Hosts:
        """The hosts of each slice."""
        return hosts_of(self.topology)

    @property
    def num_processes(self) -> int:
        """Processes of all slices, one on each host."""
        return self.hosts.num_hosts * self.topology.num_slices

    @property
    def grace_s(self) -> int:
        """Seconds between SIGTERM and SIGKILL: the last step, and a save by the hosts of one slice, which hold a
        complete replica among them."""
        save_s = self.state_bytes / self.hosts.num_hosts / SAVE_BYTES_PER_S
        return STOP_S + 30 * math.ceil(save_s / 30)


def job_name(run: str) -> str:
    """A job's name from a run's: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
