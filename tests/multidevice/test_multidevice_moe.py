"""A layer of experts on meshes of 8 devices equals the same layer on one: outputs, statistics and every gradient."""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.model.config import ModelConfig, MoeConfig, Precision
from lifecycle.model.dispatch import buffer_room
from lifecycle.model.gathering import gathered
from lifecycle.model.moe import MoE
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import block_definition
from lifecycle.model.routing import RouterStats, balance_loss, z_loss
from lifecycle.parallel.axes import AXES, RULES, MeshConfig
from lifecycle.parallel.mesh import build_mesh, spec

ROWS, POSITIONS, D_MODEL = 8, 32, 16
TOKENS = P(("replica", "fsdp", "expert"), ("context", "tensor"))
DATA_AXES = ("replica", "fsdp", "expert", "context")

PLAIN = MoeConfig(num_experts=8, experts_per_token=2, d_ff=24)
GROUPED = MoeConfig(
    num_experts=16, experts_per_token=4, d_ff=8, num_shared_experts=2, score="sigmoid", num_groups=4,
    groups_per_token=2, use_selection_bias=True, routed_scale=2.5,
)  # fmt: skip
BIASED = MoeConfig(num_experts=8, experts_per_token=3, d_ff=24, use_bias=True)
KINDS = {"plain": PLAIN, "grouped": GROUPED, "biased": BIASED}

MESHES = {
    "expert": {"expert": 8},
    "fsdp": {"fsdp": 8},
    "expert x fsdp": {"expert": 4, "fsdp": 2},
    "expert x tensor": {"expert": 4, "tensor": 2},
    "expert x context": {"expert": 2, "context": 4},
    "replica x expert x tensor": {"replica": 2, "expert": 2, "tensor": 2},
}

type Params = dict[str, Any]
type Result = tuple[jax.Array, RouterStats, tuple[Params, jax.Array]]


def model_config(moe: MoeConfig) -> ModelConfig:
    return ModelConfig(
        vocab_size=96, d_model=D_MODEL, d_ff=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        activation="clamped" if moe.use_bias else "silu", moe=moe, compute_dtype="float32",
    )  # fmt: skip


def layer(moe: MoeConfig) -> tuple[Any, Params]:
    """A layer whose biases are not zero, as its definition and its arrays."""
    definition, state = nnx.split(MoE(model_config(moe), nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return definition, jax.tree.map(lambda array: array + 0.1 * jax.random.normal(next(keys), array.shape), params)


def declared(moe: MoeConfig) -> Params:
    """What the layer declares of its arrays, a `Parameter` for each."""
    return block_definition(model_config(moe), is_moe=True)[1]["feed_forward"]


def specs_of(moe: MoeConfig) -> Params:
    """Where each array is cut."""
    return jax.tree.map(lambda parameter: spec(*parameter.axes), declared(moe))


def in_use(moe: MoeConfig, params: Params, precision: Precision | None = None) -> nnx.State:
    """What the decoder makes of a layer's weights before it uses them."""
    return nnx.State(gathered(model_config(moe), declared(moe), params, precision))


def run(
    moe: MoeConfig,
    mesh: Mesh,
    present: bool,
    precision: Precision | None,
    params: Params,
    x: jax.Array,
    pull: jax.Array,
    is_token: jax.Array,
) -> Result:
    """Outputs, statistics and gradients of a loss with the router's own losses in it, on this device's part."""
    every = tuple(axis for axis in DATA_AXES if mesh.shape[axis] > 1)

    def loss(params: Params, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, RouterStats]]:
        out, sums = nnx.merge(layer(moe)[0], in_use(moe, params, precision))(x, is_token if present else None)
        load, tokens = (jax.lax.psum(jax.lax.stop_gradient(value), every) for value in (sums.load, sums.tokens))
        router = 0.5 * balance_loss(load, sums.probability, tokens) + 0.1 * z_loss(sums.z, tokens)
        return (out * pull).sum() + router, (out, sums)

    (grads, grad_x), (out, sums) = jax.grad(loss, (0, 1), has_aux=True)(params, x)

    def summed(parameter: Parameter, grad: jax.Array) -> jax.Array:
        cut = {axis for name in parameter.axes if name is not None for axis in RULES[name]}
        return jax.lax.psum(grad, tuple(axis for axis in mesh.axis_names if axis not in cut))

    return out, jax.lax.psum(sums, every), (jax.tree.map(summed, declared(moe), grads), grad_x)


def on_mesh(
    moe: MoeConfig, sizes: dict[str, int], present: bool = False, precision: Precision | None = None
) -> Callable[..., Result]:
    mesh = build_mesh(MeshConfig(**sizes))
    specs = specs_of(moe)
    return jax.jit(
        jax.shard_map(
            partial(run, moe, mesh, present, precision),
            mesh=mesh,
            in_specs=(specs, TOKENS, TOKENS, TOKENS),
            out_specs=(TOKENS, P(), (specs, TOKENS)),
            check_vma=False,
        )
    )


def inputs(positions: int = POSITIONS) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, pull = jax.random.normal(jax.random.key(2), (2, ROWS, positions, D_MODEL))
    return x, pull, jax.random.uniform(jax.random.key(3), (ROWS, positions)) < 0.7


def assert_equal(found: Any, wanted: Any) -> None:
    """To 1e-5 of each array's size."""
    flat = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, a), b in flat:
        a, b = np.asarray(a), np.asarray(b)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())), err_msg=name)


@cache
def one_device(kind: str) -> Result:
    return on_mesh(KINDS[kind], {"fsdp": 1})(layer(KINDS[kind])[1], *inputs())


CASES = [("plain", "expert x context")]
MORE = [
    ("biased", "expert x fsdp"),
    ("grouped", "replica x expert x tensor"),
    *(("plain", mesh) for mesh in MESHES if ("plain", mesh) not in CASES),
]


@pytest.mark.parametrize(("kind", "mesh"), [*CASES, *(pytest.param(*case, marks=pytest.mark.matrix) for case in MORE)])
@pytest.mark.slow  # the default tests have whole models with experts
def test_a_mesh_equals_one_device(kind: str, mesh: str) -> None:
    moe, wanted = KINDS[kind], one_device(kind)
    assert_equal(on_mesh(moe, MESHES[mesh])(layer(moe)[1], *inputs()), wanted)
    assert float(wanted[1].dropped) == 0
    assert float(wanted[1].load.sum()) == ROWS * POSITIONS * moe.experts_per_token
    grads = wanted[2][0]
    still = {"selection_bias"} & grads.keys()
    assert all(not np.any(grads[name]) for name in still)
    assert all(np.any(grad) for name, tree in grads.items() if name not in still for grad in jax.tree.leaves(tree))


@pytest.mark.long
def test_padding_goes_to_no_expert_on_a_mesh_either() -> None:
    params = layer(PLAIN)[1]
    meshes = ({"expert": 4, "tensor": 2}, {"fsdp": 1})
    found, wanted = (on_mesh(PLAIN, mesh, present=True)(params, *inputs()) for mesh in meshes)
    assert_equal(found, wanted)
    is_token = inputs()[2]
    assert float(found[1].load.sum()) == 2 * float(is_token.sum())
    assert not np.any(np.asarray(found[0])[~np.asarray(is_token)])


def crowded(params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inputs of which nearly all choose expert 5."""
    x, pull, is_token = inputs(positions=128)
    return x + 3.0 * params["router"][:, 5] / jnp.linalg.norm(params["router"][:, 5]), pull, is_token


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    [pytest.param({"expert": 8}, id="expert"),
     pytest.param({"expert": 4, "tensor": 2}, id="expert x tensor", marks=pytest.mark.matrix)],
)  # fmt: skip
def test_more_rows_than_a_buffer_holds_come_in_further_rounds(sizes: dict[str, int]) -> None:
    params = layer(PLAIN)[1]
    x, pull, is_token = crowded(params)
    found, wanted = (on_mesh(PLAIN, mesh)(params, x, pull, is_token) for mesh in (sizes, {"fsdp": 1}))
    assert_equal(found, wanted)
    peers = sizes["expert"]
    room = buffer_room(ROWS * 128 // peers, 2, 8 // peers, peers)
    assert room.most > 0 and float(found[1].load[5]) > room.first
    assert float(found[1].dropped) == 0


@pytest.mark.long
def test_further_rounds_multiply_8_bit_values_too() -> None:
    """Rows and columns have their scales wherever they are, so outputs are equal. A gradient's columns have one scale
    for a round on a device: there values round otherwise."""
    params = layer(PLAIN)[1]
    found, wanted = (on_mesh(PLAIN, mesh, precision="int8")(params, *crowded(params)) for mesh in ({"expert": 8}, {}))
    assert_equal(found[0], wanted[0])
    flat = zip(jax.tree_util.tree_leaves_with_path(found[2]), jax.tree.leaves(wanted[2]), strict=True)
    for (path, grad), other in flat:
        off = np.linalg.norm(np.asarray(grad) - np.asarray(other)) / np.linalg.norm(other)
        assert off < 0.05, path  # 0.030 at most


def test_where_rows_are_not_written_to_their_places_blocks_of_a_fixed_capacity_are_exchanged() -> None:
    """A device's 64 rows and their weights go out and come back in blocks of 10 rows for each of 8 devices, 80 in all
    and not the 512 of a gather; only counts and the router are gathered."""
    definition, params = layer(PLAIN)
    mesh = build_mesh(MeshConfig(expert=8))
    specs = specs_of(PLAIN)

    def forward(params: Params, x: jax.Array) -> jax.Array:
        return nnx.merge(definition, in_use(PLAIN, params))(x)[0]

    run = jax.shard_map(forward, mesh=mesh, in_specs=(specs, TOKENS), out_specs=TOKENS, check_vma=False)
    lowered = jax.jit(run).lower(params, jax.ShapeDtypeStruct((ROWS, POSITIONS, D_MODEL), jnp.float32)).as_text()
    moved = re.findall(r'"stablehlo.all_to_all".*-> tensor<([^>]*)>', lowered)
    once = ["8x10x16xf32", "8x10xf32", "8x10x16xf32"]  # rows, their weights, the way back
    assert sorted(moved) == sorted(2 * once)  # in the first round, and in the loop of further ones
    gathered = re.findall(r'"stablehlo.all_gather".*-> tensor<([^>]*)>', lowered)
    assert sorted(gathered) == ["16x8xf32", "8x8xi32"]


@pytest.mark.aot
def test_a_tpu_moves_the_rows_there_are_and_gathers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, their weights and the way back, in the first round and in the loop of further ones."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    mesh = Mesh(np.array(devices).reshape(1, 1, 1, 4, 1, 1), AXES)
    definition, params = layer(PLAIN)
    specs = specs_of(PLAIN)

    def forward(params: Params, x: jax.Array) -> jax.Array:
        return nnx.merge(definition, in_use(PLAIN, params))(x)[0]

    run = jax.shard_map(forward, mesh=mesh, in_specs=(specs, TOKENS), out_specs=TOKENS, check_vma=False)
    # of fewer rows every device would give all its experts all of them (`model/few_rows.py`)
    lowered = jax.jit(run).lower(params, jax.ShapeDtypeStruct((ROWS, 8 * POSITIONS, D_MODEL), jnp.float32)).as_text()
    assert len(re.findall(r"custom_call @ragged_all_to_all", lowered)) == 6
    gathered = re.findall(r'"stablehlo.all_gather".*-> tensor<([^>]*)>', lowered)
    assert sorted(gathered) == ["16x8xf32", "4x8xi32"]  # the router, and who sends how much to whom
