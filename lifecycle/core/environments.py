"""The environments that start processes, and what each tells a process of its place in the job.

A launcher sets variables; each function here reads those of one launcher and has no effects. Explicit variables come
first: `LIFECYCLE_COORDINATOR` (`HOST:PORT`, process 0's), `LIFECYCLE_NUM_PROCESSES` and `LIFECYCLE_PROCESS_ID` each
replace what the launcher says. Without them a process is part of a job if its launcher has started several.
`LIFECYCLE_DISTRIBUTED` is `off` for a process that works alone, or the name of the environment to follow.
"""

import itertools
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.tpu_metadata import ask_tpu_metadata

type Variables = Mapping[str, str]

SWITCH = "LIFECYCLE_DISTRIBUTED"
COORDINATOR, COUNT, INDEX = "LIFECYCLE_COORDINATOR", "LIFECYCLE_NUM_PROCESSES", "LIFECYCLE_PROCESS_ID"
EXPLICIT = "variables"  # the environment of a job without a launcher
PORTS = (20000, 12000)  # first and number: below the ports that kernels give to outgoing connections
TPU_PORT = 8482  # JAX's own on TPUs, which firewalls there may have been opened for
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """A process's place in its job; `environment` is who said so, `hosts` the processes whose host is known."""

    address: str
    count: int
    index: int
    environment: str
    hosts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a launcher tells: process 0's host and port, the number of processes, this one's index, and hosts by index;
    None for what it does not tell."""

    host: str | None
    port: int
    count: int | None
    index: int | None
    hosts: Mapping[int, str] = field(default_factory=dict)


NOTHING = Told(None, 0, None, None)


def find_place(variables: Variables = os.environ) -> Place | None:
    """This process's place in a job, or None if it works alone.

    Raises `ConfigError` for variables that contradict each other or leave the place open.
    """
    choice = variables.get(SWITCH)
    if choice == "off":
        return None
    if choice is not None and choice not in ENVIRONMENTS:
        raise ConfigError(f"{SWITCH}: no environment {choice!r}{nearest(choice, ('off', *ENVIRONMENTS))}")
    explicit = [name for name in (COORDINATOR, COUNT, INDEX) if name in variables]
    name, told = (EXPLICIT, NOTHING) if len(explicit) == 3 else _first_told(variables, choice)
    if choice is not None and told is NOTHING and len(explicit) < 3:
        raise ConfigError(f"{SWITCH} is {choice}, whose variables are not set; `off` is for a process that works alone")
    if not explicit and (told.count is None or told.count < 2):
        return None
    place = _joined(variables, told, name)
    return place if place.count > 1 else None


def _first_told(variables: Variables, choice: str | None) -> tuple[str, Told]:
    """The first environment that is there, or the chosen one, and what it tells."""
    for name, read in ENVIRONMENTS.items():
        if choice in (None, name) and (told := read(variables)) is not None:
            return name, told
    return EXPLICIT, NOTHING


def _joined(variables: Variables, told: Told, name: str) -> Place:
    """The explicit variables, and for what they leave open the launcher's."""
    address = variables.get(COORDINATOR) or (told.host and f"{_bracketed(told.host)}:{told.port}")
    count = _number(variables, COUNT) if COUNT in variables else told.count
    index = _number(variables, INDEX) if INDEX in variables else told.index
    values = {COORDINATOR: address, COUNT: count, INDEX: index}
    if missing := [variable for variable, value in values.items() if value is None]:
        raise ConfigError(f"this process is part of a job ({name}): set {' and '.join(missing)} too")
    assert address is not None and count is not None and index is not None
    if not re.search(r".:\d+$", address):
        raise ConfigError(f"{COORDINATOR} must be HOST:PORT, process 0's (given: {address!r})")
    if not 0 <= index < count:
        raise ConfigError(f"process {index} of {count}: indices start at 0 and end before the count ({name})")
    return Place(address, count, index, name, told.hosts)


def open_mpi(variables: Variables) -> Told | None:
    """Open MPI's `mpirun`, whose manual names rank and sizes. Version 4 also tells the address of `mpirun`, as
    `ID;tcp://IP,...:PORT`, version 5 its host, as `prterun-HOST-ID@JOB`; process 0 is taken to be there."""
    if "OMPI_COMM_WORLD_SIZE" not in variables or "OMPI_COMM_WORLD_RANK" not in variables:
        return None
    count = _number(variables, "OMPI_COMM_WORLD_SIZE")
    uri, namespace = variables.get("OMPI_MCA_orte_hnp_uri", ""), variables.get("PMIX_NAMESPACE", "")
    found = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri) or re.match(r"prte(?:run)?-(.+)-\d+@", namespace)
    host = next(filter(None, found.groups()), None) if found else None
    if variables.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count):
        host = LOOPBACK  # all on one machine, whose name need not resolve
    return Told(host, _port(uri.partition(";")[0] or namespace), count, _number(variables, "OMPI_COMM_WORLD_RANK"))


def slurm(variables: Variables) -> Told | None:
    """A task of a Slurm step (`srun`'s manual, output environment variables). A batch script, and what it runs without
    `srun`, is none, although it has `SLURM_NTASKS` and `SLURM_PROCID`.

    Process 0 is on the step's first node. `srun` in a batch script runs there too, and its address is known; else the
    node's name has to resolve, unless the step has one node.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    if any(name not in variables for name in names):
        return None
    nodes, count = node_names(variables["SLURM_STEP_NODELIST"]), _number(variables, "SLURM_STEP_NUM_TASKS")
    is_first = node_names(variables.get("SLURM_JOB_NODELIST", ""))[0] == nodes[0]
    host = nodes[0]
    if len(nodes) == 1:
        host = LOOPBACK
    elif is_first and variables.get("ENVIRONMENT") == "BATCH":
        host = variables.get("SLURM_LAUNCH_NODE_IPADDR", host)
    port = _port(f"{variables['SLURM_JOB_ID']}.{variables['SLURM_STEP_ID']}")
    hosts = dict(enumerate(nodes)) if len(nodes) == count else {}  # several on a node: their order is a choice
    return Told(host, port, count, _number(variables, "SLURM_PROCID"), hosts)


def node_names(nodes: str) -> list[str]:
    """The nodes of Slurm's list, in order: `n009`, `n010` and `m2` of `n[009-010],m2`."""
    names = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        pieces = re.split(r"\[([^\]]*)\]", part)  # text and ranges in turn
        choices = [_numbers(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
        names += map("".join, itertools.product(*choices))
    return names or [""]


def _numbers(ranges: str) -> list[str]:
    """`009`, `010` and `7` of `009-010,7`."""
    ends = [part.split("-") for part in ranges.split(",")]
    return [f"{number:0{len(end[0])}}" for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]


def tpu_pods(variables: Variables) -> Told | None:
    """TPU pods on GKE: its webhook sets the host names of the slice and this one's number, and in a JobSet of several
    slices MEGASCALE's variables, whose coordinator is the first host of slice 0."""
    if "TPU_WORKER_HOSTNAMES" not in variables or not variables.get("TPU_WORKER_ID", "").isdecimal():
        return None  # where there are no TPUs, libtpu leaves a warning in both for the processes that this one starts
    hosts = variables["TPU_WORKER_HOSTNAMES"].split(",")
    return _of_slices(hosts, int(variables["TPU_WORKER_ID"]), variables)


def tpu_vm(variables: Variables, ask: Callable[[str], str | None] = ask_tpu_metadata) -> Told | None:
    """A Cloud TPU VM: its metadata server knows the slice's hosts, as `IP` or `NAME:ID:IP`, this one's number, and in
    `tpu-env` MEGASCALE's variables, a line `NAME: 'VALUE'` each. Only a machine with TPUs is asked."""
    if "TPU_SKIP_MDS_QUERY" in variables or (worker := ask("agent-worker-number")) is None:
        return None
    hosts = [host.split(":")[-1] for host in (ask("worker-network-endpoints") or "").split(",")]
    lines = re.findall(r"^(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?\s*$", ask("tpu-env") or "", re.MULTILINE)
    return _of_slices(hosts, int(worker), dict(lines) | dict(variables))


def _of_slices(hosts: list[str], worker: int, variables: Variables) -> Told:
    """All hosts of slice 0 come first, then those of slice 1; every slice has as many."""
    slices = _number(variables, "MEGASCALE_NUM_SLICES") if variables.get("MEGASCALE_NUM_SLICES") else 1
    own = _number(variables, "MEGASCALE_SLICE_ID") if variables.get("MEGASCALE_SLICE_ID") else 0
    coordinator = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    first = own * len(hosts)
    known = {first + index: host for index, host in enumerate(hosts)}
    return Told(coordinator.split(":")[0], TPU_PORT, slices * len(hosts), first + worker, known)


def indexed_job(variables: Variables) -> Told | None:
    """A pod of a Kubernetes Job with `completionMode: Indexed` knows its index alone; the manifest sets the rest."""
    if "JOB_COMPLETION_INDEX" not in variables:
        return None
    return Told(None, 0, None, _number(variables, "JOB_COMPLETION_INDEX"))


# the first that is there: `mpirun` may run in a Slurm step, and GKE's TPU pods are pods of an indexed Job
ENVIRONMENTS: dict[str, Callable[[Variables], Told | None]] = {
    "open_mpi": open_mpi, "slurm": slurm, "tpu_pods": tpu_pods, "indexed_job": indexed_job, "tpu_vm": tpu_vm,
}  # fmt: skip


def _port(job: str) -> int:
    """The same port in all processes of a job; two jobs on a host rarely get the same one."""
    return PORTS[0] + zlib.crc32(job.encode()) % PORTS[1]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _number(variables: Variables, name: str) -> int:
    try:
        return int(variables[name])
    except ValueError:
        raise ConfigError(f"{name} must be a number (given: {variables[name]!r})") from None
