"""Topologies by name, without the TPU compiler."""

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning import compilers, topology
from lifecycle.planning.topology import check_fits, mesh_over, parse_topology


def test_a_topology_is_a_chip_a_shape_and_slices() -> None:
    two = parse_topology("v5p:4x4x8*2")
    assert (two.chip.name, two.shape, two.num_slices, two.num_chips, two.num_devices) == ("v5p", (4, 4, 8), 2, 256, 256)
    assert two.name == "v5p:4x4x8*2"
    assert parse_topology("tpu7x:4x4x4").num_devices == 128


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("v5p:4x4x4", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("v5p:4x4x6", (False, False, False)),
        ("v6e:16x16", (True, True, False)),
        ("v6e:8x16", (False, True, False)),
        ("v5e:2x2", (False, False, False)),
        ("tpu7x:8x8x16", (True, True, True)),
    ],
)
def test_rings_close_in_whole_cubes_and_whole_pods(name: str, wrap: tuple[bool, bool, bool]) -> None:
    assert parse_topology(name).wrap == wrap


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5p", "expected CHIP:SHAPE"),
        ("v5p:4x4", "3 numbers"),
        ("v6e:16x16x1", "2 numbers"),
        ("v5p:4x0x4", "3 numbers"),
        ("v7p:4x4x4", "did you mean 'v5p'"),
        ("h100:8x2", "1 number,"),
    ],
)
def test_a_wrong_topology_is_refused_with_the_form_or_what_is_near(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_topology(name)


def test_a_mesh_that_is_not_the_topology_is_refused_with_what_fits() -> None:
    cube = parse_topology("v5p:4x4x4")
    with pytest.raises(ConfigError, match=r"fsdp=16 x tensor=2 has size 32, but .* 64 devices; choose mesh.fsdp=32"):
        mesh_over(cube, MeshConfig(fsdp=16, tensor=2))
    two = parse_topology("v5p:4x4x4*2")
    with pytest.raises(ConfigError, match=r"set mesh\.replica=2"):
        check_fits(two, dict.fromkeys(AXES, 1) | {"fsdp": 128})
    check_fits(two, dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 64})


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "find_spec", lambda _: None)
    topology.devices.cache_clear()
    with pytest.raises(ConfigError, match="uv sync --extra tpu"):
        topology.devices(parse_topology("v5p:2x2x4"))
    with pytest.raises(ConfigError, match=r"GPU compiler .* not installed: uv sync --extra gpu-compiler"):
        topology.devices(parse_topology("h100:8"))


def test_gpus_come_in_whole_nodes_or_in_a_part_of_one() -> None:
    nodes = {name: parse_topology(name).num_nodes for name in ("h100:1", "h100:4", "h100:8", "b200:16", "h100:4*3")}
    assert nodes == {"h100:1": 1, "h100:4": 1, "h100:8": 1, "b200:16": 2, "h100:4*3": 3}
    with pytest.raises(ConfigError, match=r"h100:12: 8 GPUs are a node; .*h100:16"):
        parse_topology("h100:12")
