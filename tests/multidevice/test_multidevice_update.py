"""What the optimizer's part of a step sends between devices: the whole update, compiled for eight.

Loss and gradients run in a manual `shard_map`, so every collective of theirs has its name in it; what has not is the
partitioner's choice for the optimizer, which no trace shows.
"""

import math
import re
from functools import cache

import pytest

from lifecycle.core.mesh import MeshConfig, build_mesh
from lifecycle.model.config import ModelConfig, num_params
from lifecycle.training.config import OptimizerConfig, PretrainConfig
from lifecycle.training.lowering import trace_train_step

MODEL = ModelConfig(
    vocab_size=512, d_model=64, d_ff=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, max_seq_len=64,
    compute_dtype="float32",
)  # fmt: skip
MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "fsdp x tensor": MeshConfig(fsdp=4, tensor=2),
    "replica x fsdp": MeshConfig(replica=2, fsdp=4),
}
CALL = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@cache
def collectives(optimizer: str, mesh: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """(the model's, the optimizer's) collectives by kind, each with the elements of its result, loops counted once."""
    config = OptimizerConfig(name="muon" if optimizer == "muon" else "adamw", weight_decay=0.1, clip_norm=1.0)
    train = PretrainConfig(steps=10, seq_len=64, global_batch_size=16, remat={}, optimizer=config)
    text = trace_train_step(MODEL, train, build_mesh(MESHES[mesh])).lower().compile().as_text()
    assert text is not None
    found: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for line in text.splitlines():
        if call := CALL.search(line):
            name = re.search(r'op_name="([^"]*)"', line)
            assert name, f"a collective without a name: {line}"
            shapes = re.findall(r"\w+\[([\d,]*)\]", call[1])
            sizes = [math.prod(int(size) for size in shape.split(",") if size) for shape in shapes]
            found["shard_map" not in name[1]].setdefault(call[2], []).append(sum(sizes))
    return found


@pytest.mark.parametrize("mesh", MESHES)
def test_adamw_with_clipping_gathers_nothing(mesh: str) -> None:
    model, optimizer = collectives("adamw", mesh)
    assert len(model["all-gather"]) > 10 and len(model["reduce-scatter"]) > 10  # the step is cut, and names are found
    assert set(optimizer) <= {"all-reduce"}


@pytest.mark.parametrize(("mesh", "cut"), [("fsdp", 0), ("replica x fsdp", 4)])
def test_adamw_with_clipping_sums_one_number_a_parameter(mesh: str, cut: int) -> None:
    """XLA joins its sums with the model's, so all of the program's are counted: whole gradients' and, with whole
    copies, each matrix's part's, the loss and its count, and at most two squares a parameter (to clip, and as a
    metric)."""
    norms, parameters = 9 * MODEL.d_model, 12
    gradients = norms + ((num_params(MODEL) - norms) // cut if cut else 0)
    found = sum(sum(part.get("all-reduce", [])) for part in collectives("adamw", mesh))
    assert gradients + 3 <= found <= gradients + 2 + 2 * parameters


def test_muon_gathers_the_matrices_of_the_layers_and_nothing_else() -> None:
    """Its products mix all rows and columns of a matrix, so each device needs the whole. The partitioner gathers it
    anew for most of them: 15 times each for q and o, 10 times for gate, up and down, where once would do, and sums
    parts of the products for k and v. Embedding and head are Adam's, and stay where they are."""
    model, optimizer = collectives("muon", "fsdp")
    assert model["all-gather"] == collectives("adamw", "fsdp")[0]["all-gather"]
    assert set(optimizer) == {"all-gather", "all-reduce"}
    square, wide = 4 * 64 * 64, 4 * 64 * 128
    assert set(optimizer["all-gather"]) == {square, wide}
    assert len(optimizer["all-gather"]) <= 2 * 15 + 3 * 10
    assert max(optimizer["all-reduce"]) < 2 * square  # k's and v's products; nothing of the vocabulary's size
