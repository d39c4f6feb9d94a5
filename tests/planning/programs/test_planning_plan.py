"""Topologies by name, and plans that are kept: all without the TPU compiler."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Silent
from lifecycle.model.config import ModelConfig, num_params
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning import topology
from lifecycle.planning.compiled.memory import Memory
from lifecycle.planning.compiled.timeline import Times
from lifecycle.planning.estimate.step import Estimate, Traffic
from lifecycle.planning.programs import plan
from lifecycle.planning.programs.lowering import seen_share, train_work
from lifecycle.planning.programs.plan import Kept, Planned, plan_program
from lifecycle.planning.topology import check_fits, mesh_over, parse_topology
from lifecycle.training.config import NextTokenConfig, OptimizerConfig

LLAMA_8B = ModelConfig(
    vocab_size=128256, d_model=4096, d_ff=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    max_seq_len=8192,
)  # fmt: skip
TRAIN = NextTokenConfig(
    steps=1000, seq_len=8192, global_batch_size=128, optimizer=OptimizerConfig(name="adamw"), remat={}
)


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
    with pytest.raises(ConfigError, match=r"fsdp=16 x tensor=2 is 32 devices, v5p:4x4x4 has 64; choose mesh.fsdp=32"):
        mesh_over(cube, MeshConfig(fsdp=16, tensor=2))
    two = parse_topology("v5p:4x4x4*2")
    with pytest.raises(ConfigError, match=r"choose mesh\.replica=2"):
        check_fits(two, dict.fromkeys(AXES, 1) | {"fsdp": 128})
    check_fits(two, dict.fromkeys(AXES, 1) | {"replica": 2, "fsdp": 64})


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "has_compiler", lambda: False)
    with pytest.raises(ConfigError, match="uv sync --extra tpu"):
        topology.devices(parse_topology("v5p:2x2x4"))
    with pytest.raises(ConfigError, match="only TPU programs"):
        topology.devices(parse_topology("h100:8"))


def planned(step_s: float = 1.0, fits: bool = True, needs: int = 10, sent: int = 0, exposed_s: float = 0.0) -> Planned:
    """A plan as if compiled, for a v5p: a second of computing unless told otherwise."""
    times = Times(compute_s=step_s, exposed_s=exposed_s)
    rows = (Traffic("all-gather", ("fsdp",), 1, sent, 0, 0.1),)
    step_s += exposed_s
    found = Estimate(1, 1, 1.0, (), 1.0, rows, 1.0, 0.0, 0.0, 0.0, times, step_s, step_s, step_s, ("a",))
    memory = Memory(1, 2, 3, needs - 6, needs, 0, parse_topology("v5p:4x4x4").chip.hbm_bytes, 0)
    known = (memory, found) if fits else (None, None)
    return Planned("v5p:4x4x4", {"fsdp": 64}, "pretrain", {}, {"jax": "1"}, fits, needs, *known, (), 2.0)


def test_a_kept_plan_is_found_by_its_key_and_by_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, key = Kept(tmp_path), {"model": 1, "mesh": {"fsdp": 64}}
    assert kept.get(key) is None
    kept.put(key, planned())
    assert kept.get(key) == planned()
    assert kept.get(key | {"model": 2}) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    monkeypatch.setattr(plan, "code_hash", lambda: "other code")
    assert Kept(tmp_path).get(key) is None


@pytest.mark.parametrize("name", ["LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION"])
def test_the_environments_options_for_the_compiler_are_in_a_plans_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept, key = Kept(tmp_path), {"model": 1}
    kept.put(key, planned())
    monkeypatch.setenv(name, "other")
    assert kept.get(key) is None


def test_plans_are_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Kept().folder == tmp_path / "lifecycle" / "plans"


def test_what_does_not_fit_is_a_plan_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "known_bytes", lambda _, devices: {"params": devices})
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (608.00G) exceeds available HBM (95.73G)."
    )

    def compile_(compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    lowered = SimpleNamespace(compile=compile_)
    mesh: Any = SimpleNamespace(shape={"fsdp": 64}, size=64)
    cube = parse_topology("v5p:4x4x4")
    got = plan_program("pretrain", cube, mesh, lambda: lowered, 0.5, compiler_options("TPU v5"), Silent())
    assert (got.fits, got.needs_bytes, got.estimate) == (False, 608 * 2**30, None)
    assert got.known_bytes == {"params": 64}
    assert got.options["xla_tpu_scoped_vmem_limit_kib"] == "65536"


def test_another_failure_of_the_compiler_is_not_swallowed() -> None:
    def fail() -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    mesh: Any = SimpleNamespace(shape={})
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan_program("pretrain", parse_topology("v5p:4x4x4"), mesh, fail, 0.5, {}, Silent())


def test_progress_tells_the_seconds_while_the_compiler_works() -> None:
    seen: list[int] = []

    class Heard(Silent):
        def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
            del total, metrics
            seen.append(done)

    def work() -> str:
        time.sleep(1.2)
        return "done"

    assert plan._with_progress(work, Heard()) == "done"
    assert seen == sorted(seen)
    assert seen[-1] >= 1


def test_a_models_work_is_three_forward_passes_and_causal_attention_is_half() -> None:
    work = train_work(LLAMA_8B, TRAIN)
    assert work.tokens == 128 * 8192
    # 6 FLOPs per parameter that multiplies and token, and 6 * layers * positions * width for half of attention
    multiplied = num_params(LLAMA_8B) - 128256 * 4096 - (2 * 32 + 1) * 4096
    assert work.flops == pytest.approx(work.tokens * (6 * multiplied + 6 * 32 * 8192 * 4096), rel=1e-12)
    assert work.flops_full_attention - work.flops == pytest.approx(work.tokens * 6 * 32 * 8192 * 4096, rel=1e-9)
    assert seen_share(LLAMA_8B, 8192) == pytest.approx(0.5)
    local = LLAMA_8B.model_copy(update={"layer_pattern": ("local", "global"), "window": 1024})
    assert 0.25 < seen_share(local, 8192) < 0.35
