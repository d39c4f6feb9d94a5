"""Gated activations and the product behind them: the written-out gradient and the TPU's kernel against JAX's own."""

from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.kernels.activation import Activation, gated
from lifecycle.kernels.gated_product import weighted_down
from lifecycle.kernels.gated_rows import tpu_gradients
from lifecycle.kernels.grouped import group_ids

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation.__value__)
kernel = jax.jit(partial(tpu_gradients, interpret=True), static_argnums=0)
CHIPS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:1x2x1")
SIZES = [40, 0, 57]  # rows of groups; behind them are 31 rows of none


def inputs(columns: int = 256) -> tuple[jax.Array, ...]:
    draw = np.random.default_rng(0)
    gate = draw.uniform(-3, 8, (128, columns))  # below, GELU is what cancels out
    up = 3 * draw.standard_normal((128, columns))
    down = draw.standard_normal((3, columns, 24)) / 16
    arrays = gate, up, draw.uniform(size=128), down, draw.standard_normal((128, 24))
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def hidden_gradient(columns: int = 256) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal((128, columns), np.float32))


@partial(jax.jit, static_argnums=0)
def with_gradients(function: Any, args: tuple[jax.Array, ...], pull: jax.Array) -> tuple[jax.Array, ...]:
    out, vjp = jax.vjp(function, *args)
    return out, *vjp(pull)


def plain(activation: Activation, gate, up, row_weights, down, group_sizes):
    """Every row through every group's matrix, all but its own thrown away."""
    hidden = gated(gate, up, activation) * row_weights[:, None]
    is_own = group_ids(group_sizes, gate.shape[0])[:, None] == jnp.arange(down.shape[0])
    return jnp.einsum("nf,xfd,nx->nd", hidden, down, is_own.astype(hidden.dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_gradients_are_the_plain_products(activation: Activation) -> None:
    *arrays, pull = inputs()
    sizes = jnp.array(SIZES)
    found = with_gradients(lambda *args: weighted_down(activation, *args, sizes), tuple(arrays), pull)
    wanted = with_gradients(partial(plain, activation, group_sizes=sizes), tuple(arrays), pull)
    for array, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


# Columns of one narrow block, of one with three lanes, and of several blocks.
@pytest.mark.parametrize(
    ("activation", "columns"),
    [
        pytest.param(activation, columns, marks=() if (first + second) % 3 < 2 else pytest.mark.slow)
        for first, activation in enumerate(ACTIVATIONS)
        for second, columns in enumerate((64, 384, 2560))
    ],
)
def test_the_kernel_gives_the_gradients_of_the_rows_there_are(activation: Activation, columns: int) -> None:
    gate, up, row_weights, _, _ = inputs(columns)
    d_hidden, num_rows = hidden_gradient(columns), jnp.array(sum(SIZES))
    *found, d_weights = kernel(activation, gate, up, d_hidden, row_weights, num_rows)

    hidden, d_gate, d_up, wanted_weights = with_gradients(
        lambda a, b, w: gated(a, b, activation) * w[:, None], (gate, up, row_weights), d_hidden
    )
    for array, wanted in zip(found, (d_gate, d_up, hidden), strict=True):
        np.testing.assert_allclose(array[: sum(SIZES)], wanted[: sum(SIZES)], rtol=1e-5, atol=1e-5)
    largest = float(jnp.abs(wanted_weights).max())  # sums over the columns
    np.testing.assert_allclose(d_weights[: sum(SIZES)], wanted_weights[: sum(SIZES)], rtol=1e-5, atol=1e-5 * largest)
    assert not np.any(d_weights[sum(SIZES) :])


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    gate, up, row_weights, _, _ = inputs()
    gate, up, d_hidden = (a.astype(jnp.bfloat16) for a in (gate, up, hidden_gradient()))

    def computed(dtype: Any) -> tuple[jax.Array, ...]:
        halves = gate.astype(dtype), up.astype(dtype)
        return kernel("silu", *halves, d_hidden.astype(dtype), row_weights, jnp.array(128))

    found = computed(jnp.bfloat16)
    assert [array.dtype for array in found] == [jnp.bfloat16] * 3 + [jnp.float32]
    for array, exact in zip(found[:3], computed(jnp.float32)[:3], strict=True):
        np.testing.assert_array_equal(array, exact.astype(jnp.bfloat16))


def test_rows_that_belong_to_no_group_change_nothing_whatever_they_hold() -> None:
    *arrays, pull = inputs()
    dirty = [array.at[sum(SIZES) :].set(jnp.nan) for array in arrays[:3]]
    sizes = jnp.array(SIZES)
    _, d_gate, d_up, d_weights, d_down = with_gradients(
        lambda *args: weighted_down("silu", *args, sizes), (*dirty, arrays[3]), pull
    )
    assert np.all(np.isfinite(d_down)) and np.all(np.isfinite(d_weights))
    assert np.all(np.isfinite(d_gate[: sum(SIZES)])) and np.all(np.isfinite(d_up[: sum(SIZES)]))


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "columns"),
    [
        *((chip, 14336) for chip in CHIPS),  # Mixtral
        ("v4:2x2x1", 2880),  # gpt-oss, on the chip with the least VMEM
        *(pytest.param(chip, 2880, marks=pytest.mark.long) for chip in CHIPS if not chip.startswith("v4")),
    ],
)
def test_every_chip_writes_the_gradients_over_the_activations(
    topology: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel, which fits the chip's VMEM and needs no memory beside the arrays it reads."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    program = jax.jit(
        jax.shard_map(
            partial(tpu_gradients, "silu"), mesh=Mesh(np.array([device]), "x"), in_specs=P(), out_specs=P(),
            check_vma=False,
        ),
        donate_argnums=(0, 1, 2),
    )  # fmt: skip
    rows = jax.ShapeDtypeStruct((4096, columns), jnp.bfloat16)
    weights, number = jax.ShapeDtypeStruct((4096,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    compiled: Any = program.lower(rows, rows, rows, weights, number).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
    if columns % 128 == 0:  # other widths enter a program in another layout, which is copied here
        assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4096 * columns / 2
