"""Shardings, named activations and collectives of every shipped config with a mesh are what they were."""

import time

import pytest

from lifecycle.core.config import load_config
from lifecycle.core.mesh import MeshConfig
from lifecycle.model.config import ModelConfig
from lifecycle.planning.contract import contract
from lifecycle.stages.config import RunConfig
from lifecycle.training.config import PretrainConfig
from tests.golden.make_contracts import FOLDER, REPOSITORY, lines_of, shipped


def test_every_shipped_config_with_a_mesh_has_its_contract() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_config_keeps_its_contract(name: str) -> None:
    kept = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found = lines_of(name)
    changed = [f"- {line}" for line in kept if line not in found] + [f"+ {line}" for line in found if line not in kept]
    assert found == kept, "\n".join(["run tests/golden/make_contracts.py if this is meant:", *changed])


def test_weights_are_gathered_once_a_layer_and_pass_and_gradients_scattered_once() -> None:
    """The arithmetic of a small model by hand: 4 layers of 7 matrices, forward and recomputed, and the head."""
    model = ModelConfig(
        vocab_size=256, d_model=64, d_ff=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16,
        compute_dtype="bfloat16",
    )  # fmt: skip
    train = PretrainConfig(steps=1, seq_len=128, global_batch_size=8, remat={})
    lines = contract(model, train, MeshConfig(fsdp=8))
    matrices = 64 * 16 * 2 * (4 + 2) + 3 * 64 * 128
    ids = 8 * 128 * 4  # all devices' tokens, for the look-up of the embedding's columns
    gathered, scattered = 2 * 4 * matrices * 2 + 256 * 64 * 2 + ids, 4 * matrices * 2 + 256 * 64 * 2
    assert f"all_gather | fsdp | {2 * 4 * 7 + 2} | {gathered}" in lines
    assert f"reduce_scatter | fsdp | {4 * 7 + 1} | {scattered}" in lines


@pytest.mark.parametrize("name", shipped())
def test_every_name_of_a_policy_exists_in_the_program(name: str) -> None:
    """A policy that names what the program does not have would save nothing, silently."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    names = {line.split(" | ")[0] for line in lines[lines.index("activation | a device's part") :]}
    policy = load_config(RunConfig, REPOSITORY / "configs" / f"{name}.yaml").pretrain.remat
    assert set(policy or {}) <= names


def test_depth_costs_nothing_to_trace() -> None:
    """126 layers (Llama 3.1 405B) in the time of 4, and the same lines but for the counts."""
    small = load_config(RunConfig, REPOSITORY / "configs" / "llama3_8b_v5p_128.yaml")
    seconds: dict[int, list[float]] = {4: [], 126: []}
    for layers in (4, 126, 126, 4, 4, 126):
        model = small.model.model_copy(update={"num_layers": layers})
        started = time.process_time()
        contract(model, small.pretrain, small.mesh)
        seconds[layers].append(time.process_time() - started)
    assert min(seconds[126]) < 1.5 * min(seconds[4])
