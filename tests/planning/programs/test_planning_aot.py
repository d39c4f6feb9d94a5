"""The TPU compiler itself, on programs of seconds: collectives' other forms, and memory."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, SingleDeviceSharding

from lifecycle.core.progress import Silent
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.estimate.work import Work
from lifecycle.planning.programs.lowering import PlannedProgram
from lifecycle.planning.programs.plan import ProgramPlan, plan_program
from lifecycle.planning.topology import Topology, devices, mesh_of_one, mesh_over, parse_topology, prepare
from tests.planning.small_programs import HIDDEN, LAYERS, WIDTH, layers_flops, lower_layers

pytestmark = [pytest.mark.aot, pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed")]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def plan_of(
    topology: Topology, mesh: Mesh, lower: Callable[[], jax.stages.Lowered], weights: jax.ShapeDtypeStruct
) -> ProgramPlan:
    work = Work(1, 1.0, 1.0, 1)
    program = PlannedProgram("test", "step", "train.test", mesh, lower, lambda: {"parameters": weights}, work)
    return plan_program(program, topology, is_tuned=False, progress=Silent())


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("v5e:2x2", MeshConfig(fsdp=2, tensor=2)),  # chains of fusions
        ("tpu7x:2x2x1", MeshConfig(fsdp=4, tensor=2)),  # handed to the sparse cores
        ("v5p:2x2x1*2", MeshConfig(replica=2, fsdp=2, tensor=2)),  # sends between slices
    ],
)
def test_products_and_gathers_are_counted_once_in_every_form(name: str, mesh: MeshConfig) -> None:
    topology = parse_topology(name)
    laid = mesh_over(topology, mesh)
    program = Program(parse_module(lower_layers(laid).compile().as_text() or ""))
    assert program.matmul_flops == layers_flops(laid)
    shape = MeshShape(AXES, laid.devices.shape, topology.num_slices)
    payload: Counter[tuple[str, ...]] = Counter()
    for c in collectives(program, shape):
        if c.kind == "all-gather":
            payload[c.axes] += c.runs * c.payload_bytes
    assert payload["fsdp",] == LAYERS * 4 * 2 * WIDTH * HIDDEN // mesh.tensor


def test_a_chips_memory_is_what_its_compiler_says() -> None:
    for name in ("v4:2x2x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "tpu7x:1x1x1"):
        topology = parse_topology(name)
        sharding = SingleDeviceSharding(devices(topology)[0])
        large = jax.ShapeDtypeStruct((2**10, 2**30), jnp.int8, sharding=sharding)
        with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as caught:
            jax.jit(lambda x: x + 1).lower(large).compile()
        says = float(str(caught.value).partition("available HBM (")[2].partition("G)")[0])
        assert topology.chip.hbm_bytes == int(says * 2**30)


def test_memory_parts_add_up_to_the_peak_and_too_much_is_a_plan_that_does_not_fit() -> None:
    topology = parse_topology("v5e:1x1")
    mesh = mesh_of_one(topology)
    sharding = SingleDeviceSharding(mesh.devices.flat[0])

    def weights(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, 1024), jnp.float32, sharding=sharding)

    def lower(size: int) -> jax.stages.Lowered:
        x = jax.ShapeDtypeStruct((256, size), jnp.float32, sharding=sharding)
        return jax.jit(lambda weights, x: jnp.tanh(x @ weights)).lower(weights(size), x)

    small = plan_of(topology, mesh, lambda: lower(2**14), weights(2**14))
    assert small.fits
    assert small.memory is not None
    m = small.memory
    assert m.parameters_bytes == 2**14 * 1024 * 4
    parts = m.parameters_bytes + m.optimizer_bytes + m.other_arguments_bytes + m.temporaries_bytes
    assert parts == m.peak_bytes == small.needs_bytes
    size = 2**22 + 2**20
    large = plan_of(topology, mesh, lambda: lower(size), weights(size))
    assert not large.fits
    assert large.needs_bytes > topology.chip.hbm_bytes
    assert large.known_bytes == {"parameters": size * 1024 * 4}
    assert sum(large.known_bytes.values()) <= large.needs_bytes


def test_what_is_offloaded_crosses_the_link_to_the_host_and_lies_in_its_memory() -> None:
    topology, layers, rows, width = parse_topology("v5p:1x1x1"), 6, 4096, 1024
    mesh = mesh_of_one(topology)
    sharding = SingleDeviceSharding(mesh.devices.flat[0])
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["h"],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def layer(h: jax.Array, weights: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(checkpoint_name(h, "h") @ weights), None

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(jax.checkpoint(layer, policy=policy), x, weights)[0].astype(jnp.float32).sum()

    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.bfloat16, sharding=sharding)

    def lower() -> jax.stages.Lowered:
        x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=sharding)
        return jax.jit(jax.grad(loss)).lower(weights, x)

    plan = plan_of(topology, mesh, lower, weights)
    kept = layers * rows * width * 2
    assert plan.memory is not None and plan.memory.host_bytes == kept
    assert plan.estimate is not None
    moved = {(row.kind, row.axes): (row.runs, row.payload_bytes) for row in plan.estimate.traffic}
    assert moved == {("to host", ("host",)): (layers, kept), ("from host", ("host",)): (layers, kept)}
    assert plan.estimate.host_roofline_s == pytest.approx(2 * kept / 16e9)
    assert 0 < plan.estimate.times.host_exposed_s < plan.estimate.times.host_s
