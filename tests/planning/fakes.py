"""Devices and plans as if there were a compiler, for tests that need none."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning.compiled.memory import DeviceMemory
from lifecycle.planning.compiled.timeline import Times
from lifecycle.planning.estimate.budget import training_budget
from lifecycle.planning.estimate.step import StepEstimate, TrafficTotal
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.topology import Topology, parse_topology

CUBE = parse_topology("v5p:4x4x4")


def coordinates(topology: Topology) -> np.ndarray:
    """Rows x, y, z, core, slice in the order of slices, z, y, x, core; GPUs: node by node."""
    if not topology.chip.is_tpu:
        per_node = topology.num_devices // topology.num_nodes
        return np.array([(i % per_node, 0, 0, 0, i // per_node) for i in range(topology.num_devices)])
    x, y, z = (*topology.shape, 1, 1)[:3]
    rows = [
        (i, j, k, core, piece)
        for piece in range(topology.num_slices)
        for k in range(z)
        for j in range(y)
        for i in range(x)
        for core in range(topology.chip.devices_per_chip)
    ]
    return np.array(rows)


def fake_mesh(topology: Topology, mesh: MeshConfig | None = None) -> Any:
    """A mesh of a topology's devices in their own order, with what a plan asks of them; without sizes, of the first."""
    devices = np.empty(topology.num_devices, dtype=object)
    for i, (*coords, core, piece) in enumerate(coordinates(topology).tolist()):
        devices[i] = SimpleNamespace(coords=coords, core_on_chip=core, slice_index=piece, device_kind="TPU v5")
    sizes = (mesh or MeshConfig()).plain()
    laid = (devices if mesh else devices[:1]).reshape(tuple(sizes.values()))
    return SimpleNamespace(axis_names=AXES, devices=laid, shape=sizes, size=laid.size)


def program_plan(
    step_s: float = 1.0, fits: bool = True, needs: int = 10, sent: int = 0, exposed_s: float = 0.0
) -> ProgramPlan:
    """A plan as if compiled, for a v5p: a second of computing unless told otherwise."""
    times = Times(compute_s=step_s, exposed_s=exposed_s)
    rows = (TrafficTotal("all-gather", ("fsdp",), 1, sent, 0, 0.1),)
    step_s += exposed_s
    estimate = StepEstimate(1, 1, 1.0, 0.0, (), 1.0, rows, 1.0, 0.0, 0.0, 0.0, times, step_s, step_s, step_s, ("a",))
    memory = DeviceMemory(1, 2, 0, 3, needs - 6, needs, 0, CUBE.chip.hbm_bytes, 0)
    known = (memory, estimate) if fits else (None, None)
    budget = training_budget(estimate, CUBE, Work(1000, 1.0, 1.0, 10)) if fits else None
    head = ("v5p:4x4x4", {"fsdp": 64}, "pretrain", "pretrain", {}, {"jax": "1"})
    return ProgramPlan(*head, fits, needs, *known, (), 2.0, budget, {"parameters": 1, "optimizer": 2})
