"""Nodes, devices and pods as xpk asks a cluster for them: `tests/golden/xpk.json`, from its dry runs.

Where the two differ, it is on purpose:

- `exclusive-topology`: xpk always asks for it. A slice of one host is not a node pool of its own, so slices of one host
  may share a pool here.
- `placement-policy-name` (tpu7x): a policy that `xpk cluster create` makes and names.
- GPUs: xpk finds its nodes by the name of the node pool that it made, tolerates a taint of its own, and adds images and
  networks for GPUDirect; here the nodes are found by their label, and pods use the host's network.
- Restarts: xpk fails the set when a program fails; here it starts again (`test_launching_jobset.py`).
- One container per host; xpk privileges it, here it only may raise its memory lock.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.launching.job import Job
from lifecycle.launching.jobset import jobset
from lifecycle.planning.topology import parse_topology

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "xpk.json").read_text())
TOPOLOGIES = [name for name in GOLDEN if name != "xpk"]
POLICY = "cloud.google.com/placement-policy-name"


def parts(topology: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns (the manifest, its replicated job, that one's job, the job's pod)."""
    manifest = jobset(Job(name="w", image="i", command=("lifecycle",), topology=parse_topology(topology)))
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return manifest, replicated, job, job["template"]["spec"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_pods_and_their_devices_are_xpks(topology: str) -> None:
    golden, (_, replicated, job, pod) = GOLDEN[topology], parts(topology)
    assert replicated["replicas"] == golden["replicas"]
    for key in ("parallelism", "completions", "backoffLimit"):
        assert job[key] == golden[key]
    assert pod["restartPolicy"] == golden["restartPolicy"]
    assert [container["resources"]["limits"] for container in pod["containers"]] == golden["limits"]
    assert pod["tolerations"] == golden["tolerations"][:1]


@pytest.mark.parametrize("topology", [name for name in TOPOLOGIES if parse_topology(name).chip.is_tpu])
def test_tpu_nodes_are_xpks(topology: str) -> None:
    golden, (manifest, _, job, pod) = GOLDEN[topology], parts(topology)
    selector = {key: value for key, value in golden["nodeSelector"].items() if key != POLICY}
    assert pod["nodeSelector"] == selector
    assert pod["hostNetwork"] == golden["hostNetwork"]
    annotations = manifest["metadata"].get("annotations", {})
    assert annotations == (golden["annotations"] if job["parallelism"] > 1 else {})


def test_all_chips_but_one_are_compared() -> None:
    """xpk knows no A100 with 80 GB."""
    assert {name.partition(":")[0] for name in TOPOLOGIES} == {"v4", "v5e", "v5p", "v6e", "tpu7x", "h100", "h200"}
