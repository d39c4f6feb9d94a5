"""What a pipeline does with a stage's weights: gathered once, kept once, their gradients added up in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ref import AbstractRef
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from lifecycle.model.config import ModelConfig, Precision
from lifecycle.model.pipeline import run_pipeline, values
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.planning.programs.contract import V5P, contract
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.lowering import trace_train_step

# A stage's smallest matrices are larger than what a row has of anything else.
MODEL = ModelConfig(
    vocab_size=64, d_model=64, d_ff=128, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, max_seq_len=16,
    compute_dtype="bfloat16",
)  # fmt: skip
MESH = MeshConfig(stage=2, fsdp=4)
SEQ_LEN = 16


def train(rows: int, precision: Precision | None = None) -> NextTokenConfig:
    """`rows` of the batch are for each device."""
    size = rows * MESH.fsdp
    return NextTokenConfig(steps=1, seq_len=SEQ_LEN, global_batch_size=size, remat={}, precision=precision)


def test_gradients_of_a_stages_rows_are_added_up_in_float32() -> None:
    """256 and sixty times 1, in either order: in bfloat16 each sum would be rounded to 256 again."""
    x = jnp.array([256.0] + [1.0] * 60 + [0.0, 0.0, 256.0], jnp.bfloat16)[:, None, None]

    def gradient(weight: jax.Array, x: jax.Array) -> jax.Array:
        def loss(weight: jax.Array) -> jax.Array:
            out, _ = run_pipeline(lambda weight, x, row: (x * values(weight), ()), weight, x)
            return out.astype(jnp.float32).sum()

        return jax.grad(loss)(weight)

    mesh = build_mesh(MeshConfig(stage=2))
    manual = jax.shard_map(gradient, mesh=mesh, in_specs=(P("stage"), P()), out_specs=P("stage"), check_vma=False)
    found = jax.jit(manual)(jnp.ones(2, jnp.bfloat16), x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), 572)


@pytest.mark.parametrize("rows", [2, 8])
def test_weights_are_gathered_once_and_their_gradients_scattered_once(rows: int) -> None:
    """However many rows there are: the arithmetic by hand, of a stage's 2 layers of 7 matrices and the head."""
    lines = contract(MODEL, train(rows), MESH)
    stage, head = 2 * 2 * (64 * 16 * 2 * (4 + 2) + 3 * 64 * 128), 2 * 64 * 64
    ids = 4 * rows * MESH.fsdp * SEQ_LEN  # all devices' tokens, for the look-up of the embedding's columns
    assert f"all_gather | fsdp | {7 + 2} | {stage + head + ids}" in lines
    assert f"reduce_scatter | fsdp | {7 + 1} | {stage + head}" in lines


@pytest.mark.parametrize(("precision", "dtype"), [(None, "bfloat16"), ("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_whole_weights_wait_once_and_in_the_dtype_of_products(precision: Precision | None, dtype: str) -> None:
    """The loops over ticks take no float32 matrix but what gradients are added up in, and give out none, neither
    whole gradients of a tick nor weights for each."""
    rows, smallest = 4, 2 * 64 * 32
    ticks = rows + MESH.stage - 1
    sizes = {axis: getattr(MESH, axis) for axis in AXES}
    devices = AbstractMesh(tuple(sizes.values()), AXES, abstract_device=V5P)
    traced = trace_train_step(MODEL, train(rows, precision), devices).jaxpr.jaxpr
    forward, backward = [scan for scan in scans(traced) if scan.params["length"] == ticks]
    assert [aval.dtype for aval in matrices(forward.invars)] == [dtype] * 7
    taken = matrices(backward.invars)
    assert [aval.dtype for aval in taken if not isinstance(aval, AbstractRef)] == [dtype] * 7
    assert [aval.dtype for aval in taken if isinstance(aval, AbstractRef)] == ["float32"] * 7
    for var in (*forward.outvars, *backward.outvars):
        assert var.aval.shape[:1] != (ticks,) or var.aval.size < ticks * smallest, var.aval
    assert matrices((*forward.outvars, *backward.outvars)) == []


def matrices(variables: Any) -> list[Any]:
    """A stage's stacks of two layers' matrices among what a loop takes or gives; scales have one row."""
    avals = [var.aval for var in variables]
    return [aval for aval in avals if len(aval.shape) == 3 and aval.shape[0] == 2 and aval.shape[1] > 1]


def scans(jaxpr: Any) -> list[Any]:
    """All its loops of known length, those inside others too."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        found += [equation] if equation.primitive.name == "scan" else []
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found += scans(inner) if hasattr(inner, "eqns") else []
    return found
