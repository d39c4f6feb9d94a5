"""`lifecycle launch`: a run as a manifest for a cluster, printed as YAML.

lifecycle launch CONFIG topology=v5p:4x4x4 --image IMAGE [key=value ...] | kubectl apply -f -

The topology names the chips, as in `plan`; `*2` means two slices. Each host runs `lifecycle VERB CONFIG key=value`.
"""

import re
import sys
from pathlib import PurePosixPath
from typing import Annotated, Literal

import yaml
from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigPath, name_first, read_config
from lifecycle.core.config import ConfigError
from lifecycle.launching.job import SHARED, Job, job_name
from lifecycle.launching.jobset import jobset
from lifecycle.model.counts import num_params
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning.topology import Topology, check_fits, parse_topology
from lifecycle.stages.config import RunConfig

TOPOLOGY = "topology="
ADDRESS = re.compile(r"[a-z0-9]+:/")  # an object store's: gs://BUCKET/FOLDER

type Words = Annotated[str, Parameter(help="topology=CHIP:SHAPE; then settings of the run, as key=value.")]
type Verb = Annotated[Literal["run", "evaluate", "export"], Parameter(help="What each host runs.")]
type Image = Annotated[str, Parameter(help="The container image, made by launch/Dockerfile.")]
type Name = Annotated[str | None, Parameter(help="The job's name, if not the run's.")]
type Spot = Annotated[bool, Parameter(negative="", help="On spot nodes.")]
type Restarts = Annotated[int, Parameter(help="Restarts after failures; those that were asked for do not count.")]
type Claim = Annotated[str | None, Parameter(help=f"A persistent volume claim, mounted at {SHARED} on each host.")]
type ServiceAccount = Annotated[str | None, Parameter(help="The pods' service account, which may use the bucket.")]
type Queue = Annotated[str | None, Parameter(help="A local queue of Kueue.")]


def launch(
    config: ConfigPath, /, *words: Words, image: Image, verb: Verb = "run", name: Name = None, spot: Spot = False,
    restarts: Restarts = 20, claim: Claim = None, service_account: ServiceAccount = None, queue: Queue = None,
) -> None:  # fmt: skip
    """Prints the JobSet that runs CONFIG on a topology of a Kubernetes cluster, for `kubectl apply -f -`."""
    topology, others = _topology(words)
    stage, settings = name_first(others)
    if stage is not None and verb == "run":
        raise ConfigError(f"{stage!r}: expected key=value; `run` takes no stage")
    if restarts < 0:
        raise ConfigError(f"--restarts {restarts}: expected 0 or more")
    run = read_config(config, settings)
    _check_meshes(run, topology)
    if ".." in config.parts or (config.is_absolute() and not _is_shared(str(config), claim)):
        raise ConfigError(f"{config}: name it as in the image, relative to the repository, as configs/NAME.yaml")
    job = Job(
        name=job_name(run.name) if name is None else name, image=image, topology=topology,
        command=("lifecycle", verb, str(config), *others), state_bytes=_state_bytes(run), is_spot=spot,
        max_restarts=restarts, claim=claim, service_account=service_account, queue=queue,
    )  # fmt: skip
    _check_root(run, job)
    yaml.safe_dump(jobset(job), sys.stdout, sort_keys=False, allow_unicode=True, width=120)


def _topology(words: tuple[str, ...]) -> tuple[Topology, tuple[str, ...]]:
    """Returns (the topology, the other words)."""
    given = [word for word in words if word.startswith(TOPOLOGY)]
    if len(given) != 1:
        raise ConfigError("launch needs one topology=CHIP:SHAPE, for example topology=v5p:4x4x4, v6e:16x16*2 or h100:8")
    return parse_topology(given[0].removeprefix(TOPOLOGY)), tuple(word for word in words if word != given[0])


def _check_meshes(run: RunConfig, topology: Topology) -> None:
    meshes: dict[str, MeshConfig] = {"mesh": run.mesh}
    if run.evaluate is not None and run.evaluate.mesh is not None:
        meshes["evaluate.mesh"] = run.evaluate.mesh
    for section, mesh in meshes.items():
        check_fits(topology, {axis: getattr(mesh, axis) for axis in AXES}, section)


def _check_root(run: RunConfig, job: Job) -> None:
    """Raises `ConfigError` if the run would be on the disks of the pods."""
    if not _is_shared(run.root, job.claim):
        volume = f"{'--claim CLAIM and ' if job.claim is None else ''}root={SHARED}/FOLDER"
        raise ConfigError(
            f"root={run.root}: each pod would write to a disk of its own, which goes with it; set "
            f"root=gs://BUCKET/FOLDER, or {volume}"
        )


def _is_shared(path: str, claim: str | None) -> bool:
    place = PurePosixPath(path)
    is_claimed = claim is not None and place.is_relative_to(SHARED) and ".." not in place.parts
    return is_claimed or bool(ADDRESS.match(path))


def _state_bytes(run: RunConfig) -> int:
    """Bytes of the largest training stage's checkpoint: parameters and moments, float32."""
    return max(
        train.optimizer.bytes_per_parameter * num_params(run.model_of(name)) for name, train in run.train.items()
    )
