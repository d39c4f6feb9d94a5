"""Products of 8-bit values against the same arithmetic in NumPy, and what the compilers of chips get to see."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from lifecycle.core.platform import compiler_options
from lifecycle.core.typing import Array
from lifecycle.kernels.grouped_linear import grouped_matmul
from lifecycle.kernels.linear import linear
from lifecycle.kernels.quantised import QuantisedTable, QuantisedWeight, quantise, table_product
from lifecycle.model.quantised import quantised_weight
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.parallel.mesh import spec
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.topology import mesh_over, parse_topology, prepare

DTYPES: dict[str, tuple[Any, Any]] = {
    "int8": (np.int8, np.int8),
    "fp8": (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
}
ROWS, D, F = (2, 8), 12, 20


@partial(jax.jit, static_argnums=(0, 4))
def product(
    precision: str, x: Array, weight: Array, grad: Array, is_cut_by_column: bool = False
) -> tuple[Array, Array, Array]:
    """The product with a weight that no mesh shards, and both gradients."""

    def apply(x: Array, weight: Array) -> Array:
        held = quantised_weight((None, None), precision, x.dtype.name, weight)
        return linear(x, replace(held, is_cut_by_column=is_cut_by_column))

    out, pull = jax.vjp(apply, x, weight)
    return out, *pull(grad)


def numpy_quantise(x: np.ndarray, axis: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """(values as float64, scales)."""
    top = 127.0 if dtype == np.int8 else float(ml_dtypes.finfo(dtype).max)
    scale = np.abs(x).max(axis, keepdims=True) / top
    scaled = (x / scale).astype(np.float32)
    return (np.rint(scaled) if dtype == np.int8 else scaled).astype(dtype).astype(np.float64), scale


@pytest.mark.slow
def test_a_tpu_widens_the_weights_of_inference_and_rounds_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training weight, which receives a gradient, has its rows rounded there too."""
    draw = np.random.default_rng(0)
    x, weight, table = (jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((3, D), (D, F), (F, D)))
    held, rows = QuantisedWeight(*quantise(weight, (0,), jnp.int8)), QuantisedTable(*quantise(table, (1,), jnp.int8))
    in_training = replace(held, summed=jnp.zeros((D, F)))
    sizes = jnp.array([2, 1])
    experts = QuantisedWeight(*quantise(jnp.stack([weight, 2 * weight]), (1,), jnp.int8))
    rounded = linear(x, held)
    monkeypatch.setattr("lifecycle.kernels.quantised.platform", lambda: "tpu")
    exact = {
        "layer": (linear(x, held), x @ (held.values * held.scale)),
        "table": (table_product(x, rows), x @ (rows.values * rows.scale).T),
        "experts": (grouped_matmul(x, experts, sizes), jnp.array([[1], [1], [2]]) * (x @ (held.values * held.scale))),
    }
    for out, expected in exact.values():
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(linear(x, in_training), rounded)
    assert np.abs(rounded - exact["layer"][1]).max() > 1e-3


@pytest.mark.parametrize("is_cut_by_column", [False, True])
@pytest.mark.parametrize("precision", DTYPES)
def test_the_three_products_are_those_of_numpy(precision: str, is_cut_by_column: bool) -> None:
    draw = np.random.default_rng(0)
    x, weight, grad = (draw.normal(size=shape) for shape in ((16, D), (D, F), (16, F)))
    values, gradients = DTYPES[precision]
    (qx, sx), (qw, sw) = numpy_quantise(x, 1, values), numpy_quantise(weight, 0, values)
    (by_row, sr), (by_column, sc) = (numpy_quantise(g, a, gradients) for g, a in ((grad * sw, 1), (grad * sx, 0)))
    expected = qx @ qw * sx * sw, by_row @ qw.T * sr, qx.T @ by_column * sc
    given = (jnp.float32(x.reshape(*ROWS, D)), jnp.float32(weight), jnp.float32(grad.reshape(*ROWS, F)))
    for ours, theirs in zip(product(precision, *given, is_cut_by_column), expected, strict=True):
        # at the middle between two values float32 and float64 may round differently, by one step of one summand
        difference = np.abs(np.asarray(ours).reshape(theirs.shape) - theirs)
        assert np.median(difference) < 1e-5 and difference.max() < 0.05
    for ours, exact in zip(expected, (x @ weight, grad @ weight.T, x.T @ grad), strict=True):
        assert np.linalg.norm(ours - exact) < {"int8": 0.015, "fp8": 0.07}[precision] * np.linalg.norm(exact)


@pytest.mark.parametrize("implementation", ["cpu", "ragged"])
@pytest.mark.parametrize("precision", DTYPES)
def test_grouped_products_are_those_of_each_group_alone(
    precision: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the scales of a gradient's columns, which are of all groups. Rows behind the groups are never used."""
    monkeypatch.setattr("lifecycle.kernels.grouped._implementation", lambda x: implementation)
    draw, ends = np.random.default_rng(0), (5, 5, 16)
    x, weights, grad = (draw.normal(size=shape).astype(np.float32) for shape in ((20, D), (3, D, F), (20, F)))
    x[16:], grad[16:] = np.nan, np.inf

    @jax.jit
    def grouped(x: Array, weights: Array, grad: Array) -> tuple[Array, Array, Array]:
        def apply(x: Array, weights: Array) -> Array:
            stack = quantised_weight((None, None, None), precision, "float32", weights)
            return grouped_matmul(x, stack, jnp.diff(jnp.array((0, *ends))))

        out, pull = jax.vjp(apply, x, weights)
        return out, *pull(grad)

    out, grad_x, grad_weights = jax.device_get(grouped(x, weights, grad))
    for group, rows in ((0, slice(0, 5)), (2, slice(5, 16))):
        own_out, own_grad_x, _ = product(precision, x[rows], weights[group], grad[rows])
        np.testing.assert_allclose(out[rows], own_out, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(grad_x[rows], own_grad_x, rtol=1e-5, atol=1e-5)
        exact = x[rows].T @ grad[rows]
        off = np.linalg.norm(grad_weights[group] - exact) / np.linalg.norm(exact)
        assert off < {"int8": 0.02, "fp8": 0.1}[precision]
    assert not np.any(out[16:]) and not np.any(grad_x[16:]) and not np.any(grad_weights[1])
    own = np.asarray(product(precision, x[5:16], weights[2], grad[5:16])[2])
    weights[2], grad[:5] = 0, 0
    np.testing.assert_allclose(grouped(x, weights, grad)[2][2], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("width", [D, 1024])
def test_values_that_are_not_finite_are_not_rounded_away(precision: str, bad: float, width: int) -> None:
    """A faulty step must be seen as one; XLA's maximum of 256 and more values drops a NaN on CPUs."""
    x = jnp.ones((3, width)).at[1, 2].set(bad)
    values, scale = quantise(x, (1,), DTYPES[precision][0])
    assert not np.isfinite(np.asarray(scale))[1] and np.isfinite(np.asarray(scale)[[0, 2]]).all()
    zero, one = quantise(jnp.zeros((1, D)), (1,), DTYPES[precision][0])
    assert not np.asarray(zero, np.float32).any() and np.isfinite(np.asarray(one)).all() and values.dtype.itemsize == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=4, max_size=4), st.sampled_from(list(DTYPES)))
def test_a_value_is_off_by_at_most_half_a_step(row: list[float], precision: str) -> None:
    values, scale = quantise(jnp.array([row], jnp.float32), (1,), DTYPES[precision][0])
    exact = np.array(row, np.float32)
    largest = np.abs(exact).max()
    off = np.abs(np.asarray(values, np.float64) * np.asarray(scale, np.float64) - exact)
    step = largest / 127 if precision == "int8" else np.maximum(np.abs(exact) / 8, largest / 448 / 512)
    assert (off <= step * 0.5001 + 1e-30).all()


@pytest.mark.parametrize(
    ("precision", "platform", "products"),
    [
        ("int8", "tpu", {"i8 i8 i32": 3}),
        ("fp8", "cuda", {"f8E4M3FN f8E4M3FN f32": 1, "f8E5M2 f8E4M3FN f32": 1, "f8E4M3FN f8E5M2 f32": 1}),
    ],
)
def test_compilers_see_products_of_8_bit_values(precision: str, platform: str, products: dict[str, int]) -> None:
    """XLA's GPU compiler calls cuBLASLt for products whose operands are float8 themselves, not both E5M2 (openxla/xla
    `gemm_rewriter.cc`); scales of rows and columns are applied to the result."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((*ROWS, D), (D, F), (*ROWS, F))]
    shapes[1] = jax.ShapeDtypeStruct((D, F), jnp.float32)
    traced = jax.jit(partial(product, precision)).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = Counter[str]()
    for line in text.splitlines():
        if "stablehlo.dot_general" in line:
            types = line.rpartition(" : ")[2].replace("(", "").replace(")", "").replace("->", ",").split("tensor<")[1:]
            found[" ".join(kind.split(">")[0].rpartition("x")[2] for kind in types)] += 1
    assert found == products


@pytest.mark.long
@pytest.mark.aot
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="needs the TPU compiler: uv sync --extra tpu")
def test_a_v5e_multiplies_8_bit_values_at_twice_the_rate_and_gathers_them_as_they_are() -> None:
    """The products of a matrix cut by rows and of one cut by columns, with their gradients, compiled for 64 chips."""
    prepare()
    topology, rows, wide = parse_topology("v5e:8x8"), 2048, 4096
    mesh = mesh_over(topology, MeshConfig(fsdp=64))
    cut = (("embed", None), (None, "embed"))

    def both(x: Array, up: Array, down: Array) -> Array:
        for axes, shard in zip(cut, (up, down), strict=True):
            x = linear(x, quantised_weight(axes, "int8", "bfloat16", shard))
        return x

    def step(grad: Array, *arrays: Array) -> Any:
        out, pull = jax.vjp(both, *arrays)
        return out, pull(grad)

    specs = tuple(spec(*axes) for axes in (("batch", None), ("batch", None), *cut))
    shapes = ((64 * rows, wide), (64 * rows, wide), (wide, wide), (wide, wide))
    dtypes = (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, at))
        for shape, dtype, at in zip(shapes, dtypes, specs, strict=True)
    ]
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(specs[0], specs[1:]), check_vma=False)
    lowered = jax.jit(sharded).lower(*arrays)
    text = lowered.compile(compiler_options(mesh.devices.flat[0].device_kind)).as_text()
    program = Program(parse_module(text or ""))
    assert program.narrow_flops == program.matmul_flops == 2 * 6 * rows * wide * wide
    print(program.cycles, program.product_cycles)
    assert program.product_cycles < 0.6 * program.matmul_flops / topology.chip.flops_per_cycle
    sent = Counter[str]()
    for known in collectives(program, MeshShape(AXES, mesh.devices.shape, 1)):
        sent[known.kind] += known.payload_bytes
    assert sent["all-gather"] >= 2 * wide * wide
