"""A job's mesh over TPUs is the one that its plan was made for: on the torus, in every slice, for every process."""

from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, mesh_over_devices
from lifecycle.parallel.placement import rows_of_process
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.topology import devices, mesh_of_one, mesh_over, parse_topology, prepare
from tests.planning import small_programs

pytestmark = [pytest.mark.aot, pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed")]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    prepare()


def job_on(monkeypatch: pytest.MonkeyPatch, topology: str) -> Any:
    """As if this process ran on those devices."""
    found = devices(parse_topology(topology))
    monkeypatch.setattr(jax, "devices", lambda: list(found))
    monkeypatch.setattr(jax, "device_count", lambda: len(found))
    return found


@pytest.mark.parametrize(
    ("topology", "mesh"),
    [
        ("v5p:4x4x4", MeshConfig(fsdp=64)),
        ("v5p:4x4x4", MeshConfig(fsdp=4, context=16)),
        ("v6e:16x16", MeshConfig(fsdp=256)),
        ("tpu7x:2x2x1", MeshConfig(fsdp=4, tensor=2)),
        ("v5p:2x2x1*2", MeshConfig(replica=2, fsdp=2, tensor=2)),
        ("v5p:2x2x4*2", MeshConfig(replica=4, fsdp=8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_has_the_mesh_of_its_plan(topology: str, mesh: MeshConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    job_on(monkeypatch, topology)
    built, planned = build_mesh(mesh), mesh_over(parse_topology(topology), mesh)
    assert (built.devices == planned.devices).all()
    assert len(set(built.devices.flat)) == mesh.size


def test_copies_lie_across_slices_and_the_rest_inside() -> None:
    laid = mesh_over(parse_topology("v5p:2x2x1*2"), MeshConfig(replica=2, fsdp=4)).devices
    assert [{device.slice_index for device in part.flat} for part in laid] == [{0}, {1}]


def test_a_jobs_gathers_over_a_whole_torus_are_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the devices' own order the compiler makes sums of zero-filled arrays of them: twice the traffic."""
    monkeypatch.setattr(small_programs, "ROWS", 64)
    found = job_on(monkeypatch, "v5p:4x4x4")
    laid = build_mesh(MeshConfig(fsdp=64))
    plain = jax.sharding.Mesh(np.asarray(found).reshape(laid.devices.shape), laid.axis_names)

    def kinds(mesh: jax.sharding.Mesh) -> set[str]:
        program = Program(parse_module(small_programs.lower_layers(mesh).compile().as_text() or ""))
        return {c.kind for c in collectives(program, MeshShape(laid.axis_names, laid.devices.shape))}

    assert "all-gather" in kinds(laid)
    assert "all-gather" not in kinds(plain)


def test_a_part_of_the_devices_is_a_box_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job_on(monkeypatch, "v5e:2x4")
    assert build_mesh(MeshConfig()).size == 1
    assert len({tuple(device.coords) for device in build_mesh(MeshConfig(fsdp=4)).devices.flat}) == 4
    with pytest.raises(ConfigError, match=r"first 3 TPU devices .* not a box .* choose a mesh of all 8 devices"):
        build_mesh(MeshConfig(fsdp=3))


def test_slices_that_do_not_get_whole_copies_are_refused() -> None:
    found = devices(parse_topology("v5p:2x2x1*2"))
    with pytest.raises(
        ConfigError, match=r"mesh\.replica=1 is not a multiple of the 2 slices of this job: .*replica=2"
    ):
        mesh_over_devices(found, MeshConfig(fsdp=8))
    assert mesh_of_one(parse_topology("v5p:2x2x1*2")).size == 1


@pytest.mark.parametrize(
    ("topology", "mesh"),
    [
        ("v5p:4x4x4", MeshConfig(fsdp=64)),
        ("v5p:4x4x4", MeshConfig(fsdp=16, tensor=4)),
        ("v5p:2x2x4*2", MeshConfig(replica=2, fsdp=16)),
    ],
    ids=str,
)
def test_every_row_of_a_batch_has_a_process(topology: str, mesh: MeshConfig) -> None:
    """A host's four chips are a square of the torus, so its rows do not lie together."""
    laid = mesh_over(parse_topology(topology), mesh)
    groups = mesh.replica * mesh.fsdp
    size = 2 * groups
    processes = {device.process_index for device in laid.devices.flat}
    held = {process: rows_of_process(laid, size, process) for process in processes}
    assert set().union(*held.values()) == set(range(size))
    places = np.asarray(laid.devices).reshape(groups, -1)
    for process, rows in held.items():
        has = [group for group in range(groups) if process in {device.process_index for device in places[group]}]
        assert list(rows) == [row for group in has for row in (2 * group, 2 * group + 1)]
    if mesh == MeshConfig(fsdp=64):
        assert any(rows[-1] - rows[0] >= len(rows) for rows in held.values())
