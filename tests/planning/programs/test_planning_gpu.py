"""The GPU compiler itself, without a GPU, on programs of seconds: devices, products of 8 bits, attention, memory."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.progress import Silent
from lifecycle.core.typing import Array
from lifecycle.kernels.linear import linear
from lifecycle.kernels.quantised import FORMATS, QuantisedWeight
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.chips import CHIPS, DEVICE_KINDS
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compilers import GPU_COMPILER
from lifecycle.planning.estimate.network import network_of
from lifecycle.planning.programs.plan import plan_engine, plan_train_step
from lifecycle.planning.topology import (
    device_coordinates,
    devices,
    mesh_of_one,
    mesh_over,
    parse_topology,
    prepare,
)
from lifecycle.training.likelihood import NextTokenConfig
from tests.planning.fakes import coordinates
from tests.planning.small_programs import HIDDEN, LAYERS, WIDTH, layers_flops, lower_layers

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not GPU_COMPILER.is_installed, reason="needs the GPU compiler: uv sync --extra gpu-compiler"),
]
MODEL = ModelConfig(
    vocab_size=512, d_model=128, d_ff=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, max_seq_len=256
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("chip", [name for name, chip in CHIPS.items() if not chip.is_tpu])
def test_every_gpu_is_described_node_by_node(chip: str) -> None:
    topology = parse_topology(f"{chip}:16")
    found = devices(topology)
    assert {DEVICE_KINDS[device.device_kind] for device in found} == {chip}
    assert {device.platform for device in found} == {"gpu"}
    laid = mesh_over(topology, MeshConfig(fsdp=16))
    assert (device_coordinates(topology, laid.devices) == coordinates(topology)).all()


def test_products_and_gathers_are_counted_once() -> None:
    topology = parse_topology("h100:4")
    laid = mesh_over(topology, MeshConfig(fsdp=2, tensor=2))
    text = lower_layers(laid).compile(compiler_options=dict(GPU_COMPILER.options)).as_text()
    program = Program(parse_module(text or ""))
    assert program.matmul_flops == layers_flops(laid) and not program.unknown_loops
    payload: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for c in collectives(program, network_of(topology, laid).mesh):
        payload[c.kind, c.axes] += c.runs * c.payload_bytes
    matrices = LAYERS * WIDTH * HIDDEN * 2 // 2  # of bfloat16, cut over `tensor`
    assert payload["all-gather", ("fsdp",)] == 4 * matrices
    assert payload["reduce-scatter", ("fsdp",)] == 2 * matrices


@pytest.mark.parametrize("precision", FORMATS)
def test_an_h100_multiplies_8_bit_values(precision: str) -> None:
    """All three products of a linear layer have operands of 8 bits in the compiled program."""
    mesh = mesh_of_one(parse_topology("h100:1"))
    at, rows, d_in, d_out = NamedSharding(mesh, P()), 512, 256, 384

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

    def all_three(x: Array, weight: QuantisedWeight, grad: Array) -> Any:
        out, pull = jax.vjp(lambda x, summed: linear(x, replace(weight, summed=summed)), x, weight.summed)
        return out, pull(grad)

    weight = QuantisedWeight(
        array(FORMATS[precision].values, d_in, d_out), array(jnp.float32, 1, d_out), array(jnp.bfloat16, d_in, d_out)
    )
    step = jax.shard_map(all_three, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    lowered = jax.jit(step).lower(array(jnp.bfloat16, 1, rows, d_in), weight, array(jnp.bfloat16, 1, rows, d_out))
    program = Program(parse_module(lowered.compile(compiler_options=dict(GPU_COMPILER.options)).as_text() or ""))
    assert program.narrow_flops == program.matmul_flops == 6 * rows * d_in * d_out


def test_a_train_step_over_two_nodes_has_its_memory_attention_and_networks() -> None:
    topology = parse_topology("h100:16")
    train = NextTokenConfig(steps=10, seq_len=256, global_batch_size=16, remat={"q": "save"})
    plan = plan_train_step(MODEL, train, MeshConfig(fsdp=8, replica=2), topology, "train.pretrain", True, Silent())
    assert plan.fits and plan.memory is not None and plan.estimate is not None
    m, step = plan.memory, plan.estimate
    parts = m.parameters_bytes + m.optimizer_bytes + m.other_arguments_bytes + m.temporaries_bytes
    assert parts == m.peak_bytes == plan.needs_bytes
    assert m.usable_share == 0.75 and not m.needs_setting
    square = 2.0 * 4 * 256**2 * 64 * 0.5  # a product of a row's scores, causal
    kernels = {k.name.removeprefix("fmhaScaleBias"): (k.calls, k.flops) for k in step.kernels}
    assert kernels == {
        "Softmax": (2 * 2, pytest.approx(2 * square, rel=0.01)),  # two layers; forward runs again
        "SoftmaxBackward": (2, pytest.approx(5 * square, rel=0.01)),
    }
    assert step.times.kernel_s > 0 and step.step_s >= step.times.compute_s > 0
    gathers = [row for row in step.traffic if row.axes == ("fsdp",)]
    sums = [row for row in step.traffic if "replica" in row.axes]
    assert gathers and sums
    assert "jax-cuda13-pjrt" in plan.versions and plan.options == {"xla_gpu_autotune_level": "0"}


def test_the_engine_is_planned_too() -> None:
    """Its cache in 8 bits, which our kernel reads where it is: 4 slots of 2 pages, 2 key heads of 64 dimensions."""
    engine = MODEL, 4, 256, MeshConfig(), parse_topology("a100-80:1"), True, Silent(), ("decode",)
    (plan,) = plan_engine(*engine, kv_cache="int8")
    assert plan.fits and plan.estimate is not None and plan.estimate.matmul_flops > 0
    (paged,) = [kernel for kernel in plan.estimate.kernels if kernel.name == "paged"]
    assert paged.calls == 2 and paged.flops == 2 * 4 * 2 * 16 * 256 * 2 * 64
    cache = 4 * 256 * 2 * 2 * (64 + 4)  # of a layer: keys and values with their scales
    assert plan.memory is not None and plan.memory.cache_bytes == 2 * cache
    assert cache < paged.hbm_bytes < 1.5 * cache
