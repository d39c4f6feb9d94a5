"""What the optimizer's part of a step sends between devices: the whole update, compiled for eight.

Loss, gradients and Muon's products run in a manual `shard_map`, so every collective of theirs has its name in it; what
has not is the partitioner's choice for the rest of the optimizer, which no trace shows.
"""

import math
import re
from collections import Counter
from functools import cache

import jax
import numpy as np
import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.model.params import Params, abstract_params, logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.lowering import trace_train_step
from lifecycle.training.optimizer import build_optimizer
from lifecycle.training.optimizer_config import OptimizerConfig
from tests.multidevice.meshes import MODELS

MODEL = ModelConfig(
    vocab_size=512, d_model=64, d_ff=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, max_seq_len=64,
    compute_dtype="float32",
)  # fmt: skip
MESHES = {
    "fsdp": MeshConfig(fsdp=8),
    "fsdp x tensor": MeshConfig(fsdp=4, tensor=2),
    "replica x fsdp": MeshConfig(replica=2, fsdp=4),
}
EACH_MESH = ["fsdp", *(pytest.param(name, marks=pytest.mark.long) for name in ("replica x fsdp", "fsdp x tensor"))]
CALL = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@cache
def collectives(optimizer: str, mesh: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """(the model's, the optimizer's) collectives by kind, each with the elements of its result, loops counted once."""
    config = OptimizerConfig(name="muon" if optimizer == "muon" else "adamw", weight_decay=0.1, clip_norm=1.0)
    train = NextTokenConfig(steps=10, seq_len=64, global_batch_size=16, remat={}, optimizer=config)
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


@pytest.mark.slow
@pytest.mark.parametrize("mesh", EACH_MESH)
def test_adamw_with_clipping_gathers_nothing(mesh: str) -> None:
    model, optimizer = collectives("adamw", mesh)
    assert len(model["all-gather"]) > 10 and len(model["reduce-scatter"]) > 10  # the step is cut, and names are found
    assert set(optimizer) <= {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "cut"), [("fsdp", 0), ("replica x fsdp", 4)])
def test_adamw_with_clipping_sums_one_number_a_parameter(mesh: str, cut: int) -> None:
    """XLA joins its sums with the model's, so all of the program's are counted: whole gradients' and, with whole
    copies, each matrix's part's, the loss and its count, and at most three squares a parameter (to clip, and the
    norms of gradient and update)."""
    norms, parameters = 9 * MODEL.d_model, 12
    gradients = norms + ((num_params(MODEL) - norms) // cut if cut else 0)
    found = sum(sum(part.get("all-reduce", [])) for part in collectives("adamw", mesh))
    assert gradients + 3 <= found <= gradients + 2 + 3 * parameters


@pytest.mark.slow
@pytest.mark.parametrize("mesh", EACH_MESH)
def test_muon_exchanges_its_matrices_and_gathers_nothing(mesh: str) -> None:
    """Each layer's matrix goes to one device and back, in one exchange for each dimension that is cut. Embedding and
    head are Adam's, and stay where they are."""
    (model, optimizer), (plain, _) = collectives("muon", mesh), collectives("adamw", mesh)
    assert set(optimizer) <= {"all-reduce"}
    assert all(model[kind] == plain[kind] for kind in ("all-gather", "reduce-scatter"))
    exchanged = Counter(model["all-to-all"]) - Counter(plain.get("all-to-all", []))
    sizes = MESHES[mesh]
    layers = max(MODEL.num_layers, sizes.fsdp * sizes.tensor)  # filled up
    square, narrow, wide = (layers * 64 * width // (sizes.fsdp * sizes.tensor) for width in (64, 32, 128))
    both_ways = 2 * (2 if sizes.tensor > 1 else 1)
    assert exchanged == {square: 2 * both_ways, narrow: 2 * both_ways, wide: 3 * both_ways}


@pytest.mark.parametrize(
    ("model", "axes"),
    [pytest.param("dense", {"stage": 2, "fsdp": 4}, marks=pytest.mark.slow),
     pytest.param("experts", {"fsdp": 2, "expert": 2, "tensor": 2}, marks=pytest.mark.long),
     pytest.param("dense first", {"fsdp": 4, "context": 2}, marks=pytest.mark.matrix)],
)  # fmt: skip
def test_muons_update_is_that_of_one_device(model: str, axes: dict[str, int]) -> None:
    """Of random gradients, with the neurons scaled, for stacks of layers that divide by the devices and for those that
    do not."""
    config = MODELS[model]
    grads = jax.tree.map(
        lambda shape: np.random.default_rng(shape.size).normal(size=shape.shape).astype(np.float32),
        abstract_params(config),
    )

    def update(sizes: MeshConfig) -> Params:
        mesh = build_mesh(sizes)
        optimizer = build_optimizer(OptimizerConfig(name="muon", neuron_beta2=0.9), config, 10, mesh)
        places = tree_shardings(mesh, logical_axes(config))
        run = jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0], in_shardings=(places,))
        return jax.device_get(run(jax.device_put(grads, places)))

    for found, exact in zip(*(jax.tree.leaves(update(s)) for s in (MeshConfig(**axes), MeshConfig())), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-5, rtol=0)
