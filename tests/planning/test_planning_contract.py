"""Shardings, named activations and collectives of every shipped config with a mesh are what they were, and the debug
model's on the meshes that no shipped config has."""

import math
import time

import pytest

from lifecycle.core.config import load_config
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.planning.programs.contract import contract
from lifecycle.stages.config import RunConfig
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.lowering import trace_train_step
from tests.golden.make_contracts import FOLDER, MESHES, REPOSITORY, lines_of, lines_on, shipped
from tests.planning.shipped import pretraining


def test_every_shipped_config_with_a_mesh_has_its_contract() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_config_keeps_its_contract(name: str) -> None:
    require_kept(f"{name}.txt", lines_of(name))


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_keeps_its_contract(name: str) -> None:
    require_kept(f"meshes/{name}.txt", lines_on(*MESHES[name]))


def require_kept(name: str, found: list[str]) -> None:
    kept = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    changed = [f"- {line}" for line in kept if line not in found] + [f"+ {line}" for line in found if line not in kept]
    assert found == kept, "\n".join(["run tests/golden/make_contracts.py if this is meant:", *changed])


def test_weights_are_gathered_once_a_layer_and_pass_and_gradients_scattered_once() -> None:
    """The arithmetic of a small model by hand: 4 layers of 7 matrices, forward and recomputed, and the head."""
    model = ModelConfig(
        vocab_size=256, d_model=64, d_ff=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16,
        compute_dtype="bfloat16",
    )  # fmt: skip
    train = NextTokenConfig(steps=1, seq_len=128, global_batch_size=8, remat={})
    lines = contract(model, train, MeshConfig(fsdp=8))
    matrices = 64 * 16 * 2 * (4 + 2) + 3 * 64 * 128
    ids = 8 * 128 * 4  # all devices' tokens, for the look-up of the embedding's columns
    gathered, scattered = 2 * 4 * matrices * 2 + 256 * 64 * 2 + ids, 4 * matrices * 2 + 256 * 64 * 2
    assert f"all_gather | fsdp | {2 * 4 * 7 + 2} | {gathered}" in lines
    assert f"reduce_scatter | fsdp | {4 * 7 + 1} | {scattered}" in lines


def collectives(lines: list[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """(kind, axes) to (times a step, bytes a device and step)."""
    rows = [
        line.split(" | ") for line in lines[lines.index("collective | axes | times a step | bytes a device and step") :]
    ]
    return {(kind, axes): (int(times), int(num_bytes)) for kind, axes, times, num_bytes in rows[1:]}


def test_gradients_cross_replica_once_a_step_not_once_a_micro_batch() -> None:
    """Each parameter's gradient once, its device's part in float32; weights are gathered for each micro-batch."""
    mesh = MeshConfig(replica=2, fsdp=2)
    lines = lines_on(mesh, 1)
    once, twice = collectives(lines), collectives(lines_on(mesh, 2))
    parameters = [line.split(" | ") for line in lines[2 : lines.index("activation | a device's part")]]
    cut = [math.prod(map(int, part.split("x"))) for _, _, axes, part in parameters if "fsdp" in axes]
    whole = [math.prod(map(int, part.split("x"))) for _, _, axes, part in parameters if "fsdp" not in axes]
    assert (len(cut), len(whole)) == (8, 5)
    assert twice[("psum", "replica")] == once[("psum", "replica")] == (len(cut), 4 * sum(cut))
    loss_and_count = 2
    sums = (len(whole) + loss_and_count, 4 * (sum(whole) + loss_and_count))
    assert twice[("psum", "replica+fsdp")] == once[("psum", "replica+fsdp")] == sums
    assert not [axes for kind, axes in twice if "replica" in axes and kind != "psum"]
    assert twice[("all_gather", "fsdp")][0] == 2 * once[("all_gather", "fsdp")][0]
    assert twice[("reduce_scatter", "fsdp")][0] == 2 * once[("reduce_scatter", "fsdp")][0]


@pytest.mark.parametrize("name", shipped())
def test_every_name_of_a_policy_exists_in_the_program(name: str) -> None:
    """A policy that names what the program does not have would save nothing, silently."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split(" | ")[0] for line in lines[lines.index("activation | a device's part") :]}
    config = load_config(RunConfig, REPOSITORY / "configs" / f"{name}.yaml")
    policy = config.train[config.training_stages[0]].remat
    assert set(policy or {}) <= names


@pytest.mark.slow
def test_depth_costs_nothing_to_trace_and_to_lower() -> None:
    """126 layers (Llama 3.1 405B) in the time of 4: the whole step, optimizer included, lowered for eight CPUs."""
    small = load_config(RunConfig, REPOSITORY / "configs" / "llama3_8b_v5p_128.yaml")
    mesh, train = build_mesh(MeshConfig(fsdp=8)), pretraining(small)
    seconds: dict[int, list[float]] = {4: [], 126: []}
    for layers in (4, 126, 126, 4, 4, 126):
        model = small.model.model_copy(update={"num_layers": layers})
        started = time.process_time()
        lowered = trace_train_step(model, train, mesh).lower()
        seconds[layers].append(time.process_time() - started)
        assert f"tensor<{layers}x4096x" in lowered.as_text()  # the stacked weights are in the program
    assert min(seconds[126]) < 1.5 * min(seconds[4])
