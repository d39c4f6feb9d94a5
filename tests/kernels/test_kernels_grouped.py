"""The grouped product against one masked product per group, for each implementation that runs here."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.kernels import grouped
from lifecycle.kernels.grouped import group_ids
from lifecycle.kernels.grouped_linear import grouped_matmul

D, F = 24, 40

PRODUCTS: dict[str, Callable[..., jax.Array]] = {
    "cpu": jax.jit(grouped.cpu_product, static_argnums=3),
    "tpu": jax.jit(partial(grouped.tpu_product, interpret=True), static_argnums=3),
    "ragged": jax.jit(grouped.ragged_product, static_argnums=3),
}
GROUP_PRODUCTS: dict[str, Callable[..., jax.Array]] = {
    "cpu": jax.jit(grouped.cpu_group_products),
    "tpu": jax.jit(partial(grouped.tpu_group_products, interpret=True)),
    "ragged": jax.jit(grouped.ragged_group_products),
}
SIZES = {
    "even": (300, [75, 75, 75, 75]),
    "some empty": (300, [0, 130, 0, 170]),
    "all in one": (300, [0, 0, 300, 0]),
    "rows behind": (300, [20, 0, 129, 1]),
    "nothing": (300, [0, 0, 0, 0]),
    "few rows": (7, [1, 0, 3, 2]),
}


def arrays(rows: int, groups: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    draw = np.random.default_rng(rows)
    shapes = ((rows, D), (groups, D, F), (rows, F))
    x, weights, grad = (jnp.asarray(draw.standard_normal(shape, np.float32), dtype) for shape in shapes)
    return x, weights, grad


@jax.jit
def reference(x: jax.Array, weights: jax.Array, group_sizes: jax.Array) -> jax.Array:
    ids = group_ids(group_sizes, x.shape[0])
    return sum((jnp.where((ids == g)[:, None], x @ weights[g], 0) for g in range(weights.shape[0])), jnp.float32(0))


def assert_close(found: jax.Array, wanted: jax.Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.abs(wanted).max())))


@pytest.mark.parametrize("platform", PRODUCTS)
@pytest.mark.parametrize("case", SIZES)
def test_an_implementation_is_the_reference_with_its_gradients(platform: str, case: str) -> None:
    rows, sizes = SIZES[case]
    group_sizes = jnp.array(sizes, jnp.int32)
    x, weights, grad = arrays(rows, len(sizes))
    out, pull = jax.vjp(lambda x, weights: reference(x, weights, group_sizes), x, weights)
    grad_x, grad_weights = pull(grad)
    assert_close(PRODUCTS[platform](x, weights, group_sizes, False), out)
    assert_close(PRODUCTS[platform](grad, weights, group_sizes, True), grad_x)
    assert_close(GROUP_PRODUCTS[platform](x, grad, group_sizes), grad_weights)


@jax.jit
def both(
    x: jax.Array, weights: jax.Array, grad: jax.Array, group_sizes: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Output and gradients of the product and of the reference."""
    pairs = (jax.vjp(lambda x, w, f=f: f(x, w, group_sizes), x, weights) for f in (grouped_matmul, reference))
    found, wanted = ([out, *pull(grad)] for out, pull in pairs)
    return found, wanted


@settings(max_examples=50)
@given(st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_any_groups_give_the_reference(sizes: list[int]) -> None:
    for mine, theirs in zip(*both(*arrays(400, 4), jnp.array(sizes, jnp.int32)), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_what_lies_behind_the_groups_is_never_read(platform: str) -> None:
    group_sizes = jnp.array([50, 0, 80, 0], jnp.int32)
    x, weights, grad = arrays(300, 4)  # the programs of `SIZES`
    dirty_x, dirty_grad = x.at[130:].set(jnp.nan), grad.at[130:].set(jnp.nan)
    clean = PRODUCTS[platform](x, weights, group_sizes, False)
    np.testing.assert_array_equal(PRODUCTS[platform](dirty_x, weights, group_sizes, False), clean)
    assert not np.any(clean[130:]) and np.all(np.isfinite(clean))
    np.testing.assert_array_equal(
        GROUP_PRODUCTS[platform](dirty_x, dirty_grad, group_sizes), GROUP_PRODUCTS[platform](x, grad, group_sizes)
    )


@pytest.mark.parametrize("platform", PRODUCTS)
def test_bfloat16_is_accumulated_in_float32(platform: str) -> None:
    group_sizes = jnp.array([100, 0, 200, 0], jnp.int32)
    x, weights, grad = arrays(300, 4, "bfloat16")
    wide = [array.astype(jnp.float32) for array in (x, weights, grad)]
    out = PRODUCTS[platform](x, weights, group_sizes, False)
    sums = GROUP_PRODUCTS[platform](x, grad, group_sizes)
    assert out.dtype == sums.dtype == jnp.bfloat16
    exact = jax.vjp(lambda x, weights: reference(x, weights, group_sizes), *wide[:2])
    np.testing.assert_allclose(out.astype(jnp.float32), exact[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(sums.astype(jnp.float32), exact[1](wide[2])[1], rtol=2**-8, atol=1e-4)


@pytest.mark.aot
def test_a_tpu_gets_one_kernel_for_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: three kernels of exactly the work of the rows, and no transposed copy of the weights."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[0]
    rows, groups, d_model, d_ff = 4096, 8, 1024, 3584

    def loss(x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
        return jnp.square(grouped_matmul(x, weights, sizes)).sum(dtype=jnp.float32)

    gradients = jax.shard_map(
        jax.grad(loss, (0, 1)), mesh=Mesh(np.array([device]), "x"), in_specs=P(), out_specs=P(), check_vma=False
    )
    shapes = ((rows, d_model), jnp.bfloat16), ((groups, d_model, d_ff), jnp.bfloat16), ((groups,), jnp.int32)
    compiled = jax.jit(gradients).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    text, costs, memory = compiled.as_text(), compiled.cost_analysis(), compiled.memory_analysis()
    assert text is not None and costs is not None and memory is not None
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert costs["flops"] == pytest.approx(3 * 2 * rows * d_model * d_ff, rel=0.01)
    weights_bytes = 2 * groups * d_model * d_ff
    assert memory.temp_size_in_bytes < weights_bytes + 3 * 2 * rows * d_ff
