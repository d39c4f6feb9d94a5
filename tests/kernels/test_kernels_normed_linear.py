"""Products of normalised rows: the values and gradients of the norm and the products one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels.linear import linear
from lifecycle.kernels.norm import mean_squares, rms_norm
from lifecycle.kernels.normed_linear import normed_linear
from lifecycle.model.remat import rematerialised
from lifecycle.parallel.collectives import all_gather
from tests.model.test_model_remat import primitives

EPS, NAMES = 1e-5, ("gate", "up")
B, T, D, F = 2, 6, 16, 24
type Weights = tuple[Array, ...]


def inputs(dtype: Any = jnp.float32) -> tuple[Array, Array, Weights]:
    keys = jax.random.split(jax.random.key(0), 4)
    weights = tuple(jax.random.normal(key, (D, F), dtype) for key in keys[2:])
    return 3 * jax.random.normal(keys[0], (B, T, D), dtype), 1 + jax.random.normal(keys[1], (D,)), weights


def ours(x: Array, scale: Array, weights: Weights) -> Weights:
    return normed_linear(x, mean_squares(x), scale, weights, EPS, NAMES)


def plain(x: Array, scale: Array, weights: Weights) -> Weights:
    rows = all_gather(rms_norm(x, mean_squares(x), scale, EPS), "norm_seq", 1)
    return x, *(linear(rows, weight) for weight in weights)


def loss_of(products: Callable[..., Weights]) -> Callable[..., Array]:
    """Not linear in the products, and another gradient for each of them."""

    def loss(x: Array, scale: Array, weights: Weights) -> Array:
        rows, gate, up = products(x, scale, weights)
        return (jnp.tanh(gate) * up).astype(jnp.float32).sum() + jnp.sin(rows).astype(jnp.float32).sum()

    return loss


@pytest.mark.parametrize("is_before_kernel", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_are_those_of_norm_and_products_and_gradients_too(
    dtype: str, tolerance: float, is_before_kernel: bool
) -> None:
    args = inputs(jnp.dtype(dtype))

    def ours(x: Array, scale: Array, weights: Weights) -> Weights:
        return normed_linear(x, mean_squares(x), scale, weights, EPS, NAMES, is_before_kernel)

    assert all(map(np.array_equal, ours(*args), plain(*args)))
    found, exact = (jax.grad(loss_of(products), (0, 1, 2))(*args) for products in (ours, plain))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert one.dtype == other.dtype
        size = float(jnp.abs(other.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), atol=tolerance * size, rtol=tolerance
        )


def test_saved_products_are_not_computed_again() -> None:
    def products(remat: Any) -> int:
        layer = rematerialised(lambda *args: loss_of(ours)(*args), remat)
        jaxpr = jax.make_jaxpr(jax.grad(layer, (0, 1, 2)))(*inputs()).jaxpr
        return list(primitives(jaxpr)).count("dot_general")

    assert products({"gate": "save", "up": "save"}) == 2 * 3
    assert products({"gate": "save"}) == 2 * 3 + 1


def test_on_two_devices_gradients_are_those_of_one() -> None:
    """Positions of the rows are sharded, and so are the products' columns."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (P(None, "tensor"), P(), (P(None, "tensor"),) * 2)

    def local(*args: Any) -> Any:
        of_x, of_scale, of_weights = jax.grad(loss_of(ours), (0, 1, 2))(*args)
        return of_x, jax.lax.psum(of_scale, "tensor"), of_weights

    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
    found, exact = jax.jit(sharded)(*inputs()), jax.grad(loss_of(plain), (0, 1, 2))(*inputs())
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()), rtol=1e-5)
