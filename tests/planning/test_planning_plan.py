"""Topologies by name, plans that are kept, and the search's arithmetic: all without the TPU compiler."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.mesh import AXES, MeshConfig
from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Silent
from lifecycle.model.config import ModelConfig, MoeConfig, num_params
from lifecycle.planning import plan, search, topology
from lifecycle.planning.collectives import MeshShape
from lifecycle.planning.estimate import Estimate
from lifecycle.planning.layout import POLICIES, Candidate, forecast
from lifecycle.planning.lowering import seen_share, train_work
from lifecycle.planning.network import Network
from lifecycle.planning.plan import Kept, Planned, plan_program
from lifecycle.planning.timeline import Times
from lifecycle.planning.topology import check_fits, mesh_over, parse_topology
from lifecycle.training.config import OptimizerConfig, PretrainConfig
from tests.planning.test_planning_estimate import places

LLAMA_8B = ModelConfig(
    vocab_size=128256, d_model=4096, d_ff=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    max_seq_len=8192,
)  # fmt: skip
TRAIN = PretrainConfig(
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


def planned(step_s: float = 1.0, fits: bool = True, needs: int = 10) -> Planned:
    times = Times(compute_s=step_s)
    found = Estimate(1, 1, 1.0, (), 1.0, (), 1.0, 0.0, 0.0, times, step_s, step_s, step_s, ("a",))
    return Planned(
        "v5p:4x4x4", {"fsdp": 64}, "pretrain", {}, {"jax": "1"}, fits, needs, None, found if fits else None, (), 2.0
    )


def test_a_kept_plan_is_found_by_its_key_and_by_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, key = Kept(tmp_path), {"model": 1, "mesh": {"fsdp": 64}}
    assert kept.get(key) is None
    kept.put(key, planned())
    assert kept.get(key) == planned()
    assert kept.get(key | {"model": 2}) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    monkeypatch.setattr(plan, "code_hash", lambda: "other code")
    assert Kept(tmp_path).get(key) is None


def test_plans_are_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Kept().folder == tmp_path / "lifecycle" / "plans"


def test_what_does_not_fit_is_a_plan_with_what_it_needs() -> None:
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (608.00G) exceeds available HBM (95.73G)."
    )

    def compile_(compiler_options: Any) -> None:
        raise jax.errors.JaxRuntimeError(message)

    lowered = SimpleNamespace(compile=compile_)
    mesh: Any = SimpleNamespace(shape={"fsdp": 64})
    cube = parse_topology("v5p:4x4x4")
    got = plan_program("pretrain", cube, mesh, lambda: lowered, 0.5, compiler_options("TPU v5"), Silent())
    assert (got.fits, got.needs_bytes, got.estimate) == (False, 608 * 2**30, None)
    assert got.options == {"xla_tpu_scoped_vmem_limit_kib": "65536"}


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


def forecasts(mesh: MeshConfig, policy: str, accum: int = 1) -> Any:
    cube = parse_topology("v5p:4x4x4")
    shape = MeshShape(AXES, tuple(mesh.plain().values()))
    network = Network(cube, shape, places(cube))
    return forecast(LLAMA_8B, TRAIN, Candidate(mesh, accum, policy), cube, network)


def test_arithmetic_orders_policies_and_micro_batches_as_they_are() -> None:
    whole = MeshConfig(fsdp=64)
    nothing, attention, all_ = (forecasts(whole, policy) for policy in ("nothing", "attention", "all products"))
    assert nothing.memory_bytes < attention.memory_bytes < all_.memory_bytes
    assert nothing.compute_s > attention.compute_s > all_.compute_s
    # 2 rows of 8,192 positions: the compiler's peak for saving everything is 56 GB, for saving nothing 15 GB.
    assert all_.memory_bytes == pytest.approx(56e9, rel=0.25)
    assert nothing.memory_bytes == pytest.approx(15e9, rel=0.35)
    two = forecasts(whole, "all products", accum=2)
    assert two.saved_bytes == pytest.approx(all_.saved_bytes / 2)
    assert two.network_s > 1.9 * all_.network_s
    assert two.compute_s == all_.compute_s


def test_arithmetic_is_near_the_floor_of_products_without_recomputation() -> None:
    # 737.7 TFLOP per device, of which some are the loss and attention's own; at 0.8 of the peak.
    assert forecasts(MeshConfig(fsdp=64), "all products").compute_s == pytest.approx(
        train_work(LLAMA_8B, TRAIN).flops / 64 / 459e12 / 0.8, rel=0.15
    )


def test_meshes_are_all_of_the_topology_and_those_that_do_not_divide_have_their_reason() -> None:
    cube = parse_topology("v5p:4x4x4")
    kept, rejected = search.meshes(cube, LLAMA_8B, TRAIN)
    assert MeshConfig(fsdp=64) in kept
    assert MeshConfig(fsdp=16, tensor=4) in kept
    assert all(mesh.size == 64 for mesh in kept)
    assert all(mesh.expert == 1 for mesh in kept)
    assert len({mesh.model_dump_json() for mesh in kept}) == len(kept)
    assert any("num_kv_heads" in r.reason and "tensor=16" in r.name for r in rejected)
    moe = MoeConfig(num_experts=8, experts_per_token=2, d_ff=14336)
    mixtral = LLAMA_8B.model_copy(update={"moe": moe})
    assert {mesh.expert for mesh in search.meshes(cube, mixtral, TRAIN)[0]} == {1, 2, 4, 8}


def test_over_slices_whole_copies_lie_across() -> None:
    kept, _ = search.meshes(parse_topology("v5p:4x4x4*2"), LLAMA_8B, TRAIN)
    assert kept
    assert all(mesh.replica % 2 == 0 and mesh.size == 128 for mesh in kept)


def test_micro_batches_leave_whole_rows() -> None:
    found = list(search.candidates(MeshConfig(fsdp=64), TRAIN))
    assert {c.grad_accum for c in found} == {1, 2}
    assert {c.policy for c in found} == set(POLICIES)


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search over the cube whose compiler is a function of the candidate."""

    def laid(which: topology.Topology, mesh: MeshConfig) -> Any:
        sizes = tuple(mesh.plain().values())
        return SimpleNamespace(axis_names=AXES, devices=places(which).reshape(*sizes, -1)[..., 0])

    monkeypatch.setattr(search, "mesh_over", laid)
    monkeypatch.setattr(search, "places_of", lambda _: places(parse_topology("v5p:4x4x4")))

    def run(compile_one: Any, most: int = 3) -> search.Found:
        return search.search(parse_topology("v5p:4x4x4"), LLAMA_8B, TRAIN, compile_one, lambda _: None, most)

    return run


def test_the_pick_is_the_fastest_that_fits_and_everything_else_has_a_reason(small_search: Any) -> None:
    steps = iter([planned(3.0), planned(fits=False, needs=200 * 10**9), planned(1.0), planned(2.0)])
    found = small_search(lambda _: next(steps))
    assert [c.planned.fits for c in found.compiled] == [True, False, True, True]
    assert found.pick is found.compiled[2]
    reasons = {r.name: r.reason for r in found.rejected}
    assert reasons[found.compiled[0].candidate.name] == "compiled: 3.00 times the pick's step"
    assert reasons[found.compiled[1].candidate.name] == "the compiler: needs 200.0 GB"
    assert any(reason.startswith("by arithmetic") and "GB" in reason for reason in reasons.values())
    assert any("times the fastest" in reason for reason in reasons.values())
    assert len(found.rejected) + 1 == found.num_candidates
    assert "2,000.0 ms" in search.why(found)[1]
    assert "less computing" in search.why(found)[2]
    json.dumps(found.plain())


def test_candidates_are_compiled_in_the_order_of_their_arithmetic(small_search: Any) -> None:
    found = small_search(lambda _: planned())
    expected = [c.forecast.step_s for c in found.compiled]
    assert expected == sorted(expected)
    assert len(expected) == 3


def test_a_search_in_which_nothing_fits_ends_and_says_so(small_search: Any) -> None:
    found = small_search(lambda _: planned(fits=False))
    assert found.pick is None
    assert len(found.compiled) == 6
    assert "Nothing that was compiled fits" in search.why(found)[0]


def test_what_is_known_when_a_search_is_stopped_was_told(small_search: Any) -> None:
    told: list[Any] = []
    answers = iter([planned()])

    def compile_one(_: Candidate) -> Planned:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        search.search(parse_topology("v5p:4x4x4"), LLAMA_8B, TRAIN, compile_one, told.append)
    assert len(told) == 1


def test_a_changed_setting_is_another_plan_but_its_length_is_not() -> None:
    from lifecycle.stages.plan import IRRELEVANT

    def settings(train: PretrainConfig) -> dict[str, Any]:
        return {name: value for name, value in train.plain().items() if name not in IRRELEVANT}

    assert settings(TRAIN) == settings(TRAIN.model_copy(update={"steps": 5, "eval_every": 7}))
    assert settings(TRAIN) != settings(TRAIN.model_copy(update={"seq_len": 4096}))
    assert replace(planned(), fits=False) != planned()
