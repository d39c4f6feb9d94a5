"""The hosts behind a topology on Google's Kubernetes Engine: chips per host, hosts per slice, node labels.

Sources: docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus (labels, topologies, chips per VM) and
.../docs/how-to/gpus (GPU labels). `tests/launching/test_launching_xpk.py` compares every figure with xpk 1.16.
"""

import math
from dataclasses import dataclass

from lifecycle.core.config import ConfigError
from lifecycle.planning.topology import Topology

TPU, GPU = "google.com/tpu", "nvidia.com/gpu"  # resources of a pod, and taints of the nodes that have them
TPU_LABELS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
GPU_LABELS = {
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "a100-80": "nvidia-a100-80gb",
    "b200": "nvidia-b200",
}
TPUS_PER_HOST = 4
FLAT_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # larger ones: sides are multiples of 4, in order


@dataclass(frozen=True)
class Hosts:
    """The hosts of one slice, and how the cluster names them."""

    num_hosts: int
    chips_per_host: int
    resource: str  # of which each host offers `chips_per_host`
    node_selector: dict[str, str]


def hosts_of(topology: Topology) -> Hosts:
    """The hosts of each of the topology's slices; raises `ConfigError` for a shape that no node pool can have."""
    return _tpu_hosts(topology) if topology.chip.is_tpu else _gpu_hosts(topology)


def _tpu_hosts(topology: Topology) -> Hosts:
    shape, chips = topology.shape, math.prod(topology.shape)
    if not _is_offered(topology):
        raise ConfigError(f"topology={topology.name}: no node pool has this shape; there are {_offer(topology)}")
    per_host = min(chips, TPUS_PER_HOST)
    labels = {
        "cloud.google.com/gke-tpu-accelerator": TPU_LABELS[topology.chip.name],
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, shape)),
    }
    return Hosts(chips // per_host, per_host, TPU, labels)


def _gpu_hosts(topology: Topology) -> Hosts:
    hosts = topology.num_nodes // topology.num_slices
    labels = {"cloud.google.com/gke-accelerator": GPU_LABELS[topology.chip.name]}
    return Hosts(hosts, math.prod(topology.shape) // hosts, GPU, labels)


def _is_offered(topology: Topology) -> bool:
    shape = topology.shape
    if topology.chip.torus_dims == 2:
        return shape in FLAT_SHAPES
    is_large = not any(side % 4 for side in shape) and list(shape) == sorted(shape)
    return is_large or shape in SMALL_CUBES or (topology.chip.name == "tpu7x" and shape == (1, 1, 1))


def _offer(topology: Topology) -> str:
    if topology.chip.torus_dims == 2:
        return ", ".join(f"{a}x{b}" for a, b in FLAT_SHAPES)
    small = ", ".join("x".join(map(str, shape)) for shape in SMALL_CUBES)
    return f"{small}, and AxBxC of multiples of 4 with A <= B <= C"
