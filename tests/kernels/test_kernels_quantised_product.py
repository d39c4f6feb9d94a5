"""The TPU's products that round their operands themselves, against XLA's products of operands rounded before."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.platform import compiler_options
from lifecycle.core.typing import Array
from lifecycle.kernels import quantised
from lifecycle.kernels.activation import GATES, Activation, gated
from lifecycle.kernels.linear import gated_linear, linear, linears
from lifecycle.kernels.quantised import QuantisedWeight, quantise, rounded
from lifecycle.kernels.quantised_product import columns_blocks, columns_product, has_blocks, rows_blocks, rows_product
from lifecycle.model.quantised import quantised_weight
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.names import operation
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.topology import mesh_over, parse_topology, prepare

# Several blocks and one; columns that fill the last part of a block halfway; rows that fill several loop bodies
LARGE = [pytest.param(1024, 1152, 1024, marks=pytest.mark.slow), pytest.param(4096, 256, 384, marks=pytest.mark.slow)]
SIZES = [(256, 384, 128), (128, 128, 640), *LARGE]
LLAMA_8B = [(4096, 14336), (14336, 4096), (4096, 4096), (4096, 1024)]


def drawn(*shape: int, seed: int = 0, dtype: Any = jnp.bfloat16) -> Any:
    """Normal values, with rows and columns of very different sizes."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape)
    for dim, size in enumerate(shape):
        values *= np.exp(draw.standard_normal([size if d == dim else 1 for d in range(len(shape))]))
    return values.astype(dtype)


@partial(jax.jit, static_argnums=(2, 3))
def contract(a: Array, b: Array, dim: int, other: int) -> Array:
    """The int32 sums, in float32."""
    sums = jax.lax.dot_general(a, b, (((dim,), (other,)), ((), ())), preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32)


to_int8 = jax.jit(partial(quantise, dtype=jnp.int8), static_argnums=1)


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_rows_are_rounded_and_multiplied_as_the_reference_does(rows: int, depth: int, columns: int) -> None:
    x = drawn(rows, depth)
    x[3] = 0
    values, scale = to_int8(drawn(depth, columns, seed=1), (0,))
    out, most = jax.device_get(rows_product(x, values, across=scale, interpret=True))
    own, own_scale = to_int8(x, (1,))
    np.testing.assert_array_equal(most, np.abs(x).max(1).astype(np.float32))
    wanted = np.asarray(contract(own, values, 1, 0)) * own_scale * scale
    np.testing.assert_allclose(out.astype(np.float32), wanted.astype(x.dtype).astype(np.float32), rtol=8e-3)
    assert out.dtype == x.dtype and not np.any(out[3])


@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_a_scale_per_column_is_multiplied_in_before_rows_are_rounded(rows: int, depth: int, columns: int) -> None:
    x, values = drawn(rows, depth), to_int8(drawn(columns, depth, seed=1), (1,))[0]
    x[3] = 0
    scale = np.abs(drawn(1, depth, seed=2, dtype=np.float32))
    out, most = rows_product(x, values.T, along=scale, is_turned=True, interpret=True)
    wide, out = x.astype(np.float32) * scale, np.asarray(out, np.float32)
    own, own_scale = to_int8(wide, (1,))
    np.testing.assert_allclose(most, np.abs(wide).max(1), rtol=1e-6)
    wanted = np.asarray(contract(own, values, 1, 1)) * own_scale
    # a value in the middle may be rounded to the other side
    assert np.median(np.abs(out - wanted)) <= 4e-3 * np.median(np.abs(wanted))
    assert np.abs(out - wanted).max() <= 1e-2 * np.abs(wanted).max() and not np.any(out[3])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES)
def test_columns_have_a_scale_of_all_rows(rows: int, depth: int, columns: int, is_transposed: bool) -> None:
    x, x_scale = jax.device_get(to_int8(drawn(rows, depth), (1,)))
    grad = drawn(rows, columns, seed=1)
    grad[:, 3] = 0
    out = np.asarray(columns_product(x, x_scale[:, 0], grad, is_transposed=is_transposed, interpret=True))
    own, scale = to_int8(grad.astype(np.float32) * x_scale, (0,))
    wanted = np.asarray(contract(x, own, 0, 0)) * scale
    assert out.shape == (depth, columns) and out.dtype == grad.dtype and not np.any(out[:, 3])
    out = out.astype(np.float32)
    assert np.median(np.abs(out - wanted)) <= 4e-3 * np.median(np.abs(wanted))
    assert np.abs(out - wanted).max() <= 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize("bad", [np.inf, pytest.param(-np.inf, marks=pytest.mark.slow)])
def test_what_is_not_finite_stays_seen(bad: float) -> None:
    """And in its row or column only. NaNs cannot be tested here: XLA's maximum on a CPU drops them."""
    x, grad = drawn(256, 256), drawn(256, 256, seed=1)
    x[5, 7], grad[9, 11] = bad, bad
    values, scale = to_int8(drawn(256, 256, seed=2), (0,))
    for found in (rows_product(x, values, across=scale, interpret=True),
                  rows_product(x, values, along=scale, is_turned=True, interpret=True)):  # fmt: skip
        out, most = (np.asarray(array, np.float32) for array in found)
        assert not np.isfinite(out[5]).any() and np.isfinite(np.delete(out, 5, 0)).all()
        assert not np.isfinite(most[5])
    own, own_scale = jax.device_get(rounded(drawn(256, 256), jnp.ones((256, 1)), jnp.int8))
    for is_transposed in (False, True):
        found = columns_product(own, own_scale[:, 0], grad, is_transposed=is_transposed, interpret=True)
        out = np.asarray(found, np.float32)
        assert not np.isfinite(out[:, 11]).any() and np.isfinite(np.delete(out, 11, 1)).all()


def test_sizes_that_no_block_divides_have_none() -> None:
    assert has_blocks(8192, 256, 384)
    assert not has_blocks(8192, 256, 320) and not has_blocks(8192, 320, 256) and not has_blocks(8000, 256, 256)
    assert not has_blocks(1 << 20, 256, 256)  # one column is more than the VMEM
    assert has_blocks(1024, 256, 256) and not has_blocks(1152, 256, 256)  # 128 rows a block, nine reads of the weight
    assert has_blocks(8192, 4096, 11008) and columns_blocks(8192, 4096, 11008, is_transposed=True) is None
    assert rows_blocks(128, 1 << 20, 128) is None


@pytest.mark.parametrize(("depth", "columns"), LLAMA_8B)
def test_the_8bs_weights_are_read_slower_than_the_units_multiply(depth: int, columns: int) -> None:
    """A weight is read once for each block of rows: that must not take longer than the block's products."""
    chip = parse_topology("v6e:1x1").chip
    assert has_blocks(8192, depth, columns) and chip.int8_ops is not None
    for sizes in ((depth, columns), (columns, depth)):
        blocks = rows_blocks(8192, *sizes)
        assert blocks is not None
        assert 2 * blocks.rows / chip.int8_ops > 1 / chip.hbm_bytes_per_s
    blocks = columns_blocks(8192, depth, columns, is_transposed=True)
    assert blocks is not None and 2 * blocks.columns / chip.int8_ops > 1 / chip.hbm_bytes_per_s


def product(x: Array, weight: Array, grad: Array, is_cut_by_column: bool = False) -> tuple[Array, Array, Array]:
    """The product with a weight, and both gradients; compiled afresh, for what the chip is now."""

    @jax.jit
    def values(x: Array, weight: Array, grad: Array) -> tuple[Array, Array, Array]:
        def apply(x: Array, summed: Array) -> Array:
            return linear(x, QuantisedWeight(*quantise(weight, (0,), jnp.int8), summed, is_cut_by_column))

        out, pull = jax.vjp(apply, x, jnp.zeros(weight.shape, x.dtype))
        return out, *pull(grad)

    return values(x, weight, grad)


@pytest.mark.parametrize("is_cut_by_column", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_v6es_product_and_gradients_are_as_exact_as_those_of_other_chips(
    is_cut_by_column: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, grad = drawn(2, 128, 384), drawn(384, 256, seed=1), drawn(2, 128, 256, seed=2)
    others = product(x, weight, grad, is_cut_by_column)
    monkeypatch.setattr(quantised, "device_kind", lambda: "TPU v6 lite")
    with pltpu.force_tpu_interpret_mode():
        ours = product(x, weight, grad, is_cut_by_column)
    wide, wide_grad = (np.asarray(a, np.float32).reshape(256, -1) for a in (x, grad))
    kernel = np.asarray(weight, np.float32)
    exact = wide @ kernel, wide_grad @ kernel.T, wide.T @ wide_grad
    for own, other, wanted in zip(ours, others, exact, strict=True):
        assert own.shape == other.shape and own.dtype == other.dtype
        off, before = (np.linalg.norm(np.asarray(a, np.float32).reshape(wanted.shape) - wanted) for a in (own, other))
        assert off <= 1.001 * before < 0.05 * np.linalg.norm(wanted)


def test_other_sizes_and_dtypes_are_multiplied_as_before_on_a_v6e(monkeypatch: pytest.MonkeyPatch) -> None:
    square = drawn(256, 256, dtype=jnp.float32)
    odd, wide = (drawn(200, 256), drawn(256, 128), drawn(200, 128)), (square, square, square)
    wanted = product(*odd), product(*wide)
    monkeypatch.setattr(quantised, "device_kind", lambda: "TPU v6 lite")
    for arrays, own in zip((odd, wide), wanted, strict=True):
        for found, before in zip(product(*arrays), own, strict=True):
            np.testing.assert_array_equal(found, before)


@pytest.mark.long
def test_several_products_of_the_same_rows_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (a, b) = drawn(256, 128), (drawn(128, 256, seed=1), drawn(128, 384, seed=2))

    @jax.jit
    def together(x: Array, a: Array, b: Array, grads: tuple[Array, Array]) -> Any:
        def apply(x: Array, *summed: Array) -> tuple[Array, ...]:
            held = [QuantisedWeight(*quantise(w, (0,), jnp.int8), s) for w, s in zip((a, b), summed, strict=True)]
            return linears(x, held)

        outs, pull = jax.vjp(apply, x, jnp.zeros_like(a), jnp.zeros_like(b))
        return outs, pull(grads)

    grads = drawn(256, 256, seed=3), drawn(256, 384, seed=4)
    monkeypatch.setattr(quantised, "device_kind", lambda: "TPU v6 lite")
    with pltpu.force_tpu_interpret_mode():
        outs, (grad_x, *of_weights) = together(x, a, b, grads)
        alone = [product(x, w, grad) for w, grad in zip((a, b), grads, strict=True)]
    for out, of_weight, own in zip(outs, of_weights, alone, strict=True):
        np.testing.assert_array_equal(out, own[0])
        np.testing.assert_array_equal(of_weight, own[2])
    np.testing.assert_array_equal(grad_x, alone[1][1] + alone[0][1])


def gated_unit(gate: Array, up: Array, down: Array, grad: Array, activation: Activation) -> tuple[Array, ...]:
    """The gated activations' product with a weight, and the three gradients; compiled afresh."""

    @jax.jit
    def values(gate: Array, up: Array, down: Array, grad: Array) -> tuple[Array, ...]:
        def apply(gate: Array, up: Array, summed: Array) -> Array:
            weight = QuantisedWeight(*quantise(down, (0,), jnp.int8), summed, is_cut_by_column=True)
            return gated_linear(gate, up, weight, activation)

        out, pull = jax.vjp(apply, gate, up, jnp.zeros(down.shape, gate.dtype))
        return out, *pull(grad)

    return values(gate, up, down, grad)


@pytest.mark.parametrize(
    "activation", ["silu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gelu", "clamped"))]
)
def test_a_v6es_gated_product_is_as_exact_as_those_of_other_chips(
    activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    shapes = (2, 128, 384), (2, 128, 384), (384, 256), (2, 128, 256)
    gate, up, down, grad = (jnp.asarray(2 * draw.standard_normal(shape), jnp.bfloat16) for shape in shapes)
    others = gated_unit(gate, up, down, grad, activation)
    monkeypatch.setattr(quantised, "device_kind", lambda: "TPU v6 lite")
    with pltpu.force_tpu_interpret_mode():
        ours = gated_unit(gate, up, down, grad, activation)

    @jax.jit
    def plain(gate: Array, up: Array, down: Array, grad: Array) -> tuple[Array, ...]:
        exact, pull = jax.vjp(lambda *x: gated(x[0], x[1], activation) @ x[2], gate, up, down)
        return exact, *pull(grad)

    exact = plain(*(np.asarray(a, np.float32) for a in (gate, up, down, grad)))
    for own, other, wanted in zip(ours, others, exact, strict=True):
        off, before = (np.linalg.norm(np.asarray(a, np.float32) - wanted) for a in (own, other))
        assert own.shape == other.shape and own.dtype == other.dtype
        assert off <= 1.01 * before < 0.03 * np.linalg.norm(wanted)


def compiled(step: Any, arrays: list[Any], mesh: Mesh) -> tuple[Program, Counter[str]]:
    """A step compiled for a chip, and how often it calls each kernel."""
    sharded = jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    options = compiler_options(mesh.devices.flat[0].device_kind)
    text = jax.jit(sharded).lower(*arrays).compile(options).as_text()
    program, calls = Program(parse_module(text or "")), Counter[str]()
    for kernel in program.kernels:
        calls[kernel.name] += kernel.calls
    return program, calls


@pytest.mark.long
@pytest.mark.aot
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="needs the TPU compiler: uv sync --extra tpu")
def test_a_v6es_gated_unit_recomputes_no_product_and_copies_no_half() -> None:
    """Rematerialisation keeps both halves and each row's largest magnitude: nothing is multiplied twice, XLA multiplies
    nothing, and what is kept is not copied for the sake of its precision."""
    prepare()
    mesh = mesh_over(parse_topology("v6e:1x1"), MeshConfig())
    saved = jax.checkpoint_policies.save_only_these_names(quantised.ROW_MAXIMUM, *GATES)
    layers, rows, d_model, d_ff = 4, 4096, 1024, 2048

    @partial(jax.checkpoint, policy=saved)
    def layer(x: Array, weights: tuple[Array, Array, Array]) -> tuple[Array, None]:
        gate, up, down = (quantised_weight((None, None), "int8", "bfloat16", weight) for weight in weights)
        halves = linears(x, (gate, up))
        return x + gated_linear(halves[0], halves[1], down, "silu"), None

    def run(x: Array, weights: tuple[Array, Array, Array]) -> Array:
        return jax.lax.scan(layer, x, weights)[0]

    def step(x: Array, gate: Array, up: Array, down: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        out, pull = jax.vjp(run, x, (gate, up, down))
        return pull(out)

    shapes = [(rows, d_model), *((layers, *sides) for sides in ((d_model, d_ff), (d_model, d_ff), (d_ff, d_model)))]
    dtypes = [jnp.bfloat16, *[jnp.float32] * 3]
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    program, calls = compiled(step, arrays, mesh)
    assert calls == {"quantised_rows": 6 * layers, "quantised_columns": 3 * layers, "quantised_gates": layers}
    assert not program.matmul_flops
    assert "reduce_precision" not in {operation(executed.instruction) for executed in program.executed}


@pytest.mark.long
@pytest.mark.aot
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="needs the TPU compiler: uv sync --extra tpu")
@pytest.mark.parametrize("is_cut_by_column", [False, True])
def test_a_v6e_has_three_kernels_a_product_and_recomputes_none(is_cut_by_column: bool) -> None:
    """Rematerialisation keeps each row's largest magnitude, and rounds again with it: the product is not repeated."""
    prepare()
    mesh = mesh_over(parse_topology("v6e:1x1"), MeshConfig())
    saved = jax.checkpoint_policies.save_only_these_names(quantised.ROW_MAXIMUM)

    def step(x: Array, weight: Array, grad: Array) -> tuple[Array, Array, Array]:
        apply = jax.checkpoint(partial(_wave_times, is_cut_by_column), policy=saved)
        out, pull = jax.vjp(apply, x, weight)
        return out, *pull(grad)

    shapes = [(jnp.bfloat16, (8192, 4096)), (jnp.float32, (4096, 4096)), (jnp.bfloat16, (8192, 4096))]
    arrays = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, P())) for d, s in shapes]
    program, calls = compiled(step, arrays, mesh)
    assert calls == {"quantised_rows": 2, "quantised_columns": 1} and not program.matmul_flops


def _wave_times(is_cut_by_column: bool, x: Array, weight: Array) -> Array:
    held = quantised_weight((None, None), "int8", "bfloat16", weight)
    return linear(jnp.sin(x), QuantisedWeight(held.values, held.scale, held.summed, is_cut_by_column))
