"""What the tests of attention's kernels share: inputs, a row's mask, values and gradients beside the reference's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.mask import Mask

ONE_OP = 1e-5
SINKS = jnp.array([0.5, -1.0, 2.0, 0.0])


def arrays(length: int, heads: int, kv_heads: int, dims: tuple[int, int], batch: int = 2) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = {"q": (heads, dims[0]), "k": (kv_heads, dims[0]), "v": (kv_heads, dims[1])}
    return {name: jnp.asarray(draw.normal(size=(batch, length, *shape)), jnp.float32) for name, shape in shapes.items()}


def row(
    length: int, batch: int = 2, segment: int | None = None, window: int | None = None, num_shards: int = 1
) -> Mask:
    """A row's mask; segments of `segment` positions each, shifted by a third from row to row."""
    places, rows = np.broadcast_to(np.arange(length), (batch, length)), np.arange(batch)[:, None]
    ids = None if segment is None else jnp.asarray(1 + (places + segment // 3 * rows) // segment, jnp.int32)
    index = jnp.asarray(places, jnp.int32)  # by NumPy: nothing is compiled while tests are collected
    return Mask(index, index, ids, ids, window, num_shards)


def value_and_gradients(function: Callable[..., Array], inputs: dict[str, Array]) -> dict[str, Array]:
    def loss(inputs: dict[str, Array]) -> tuple[Array, Array]:
        out = function(**inputs)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    return {"out": out, **gradients}


@partial(jax.jit, static_argnames=("scale", "soft_cap"))
def of_reference(
    inputs: dict[str, Array], mask: Mask, scale: float | None = None, soft_cap: float | None = None
) -> dict[str, Array]:
    """Value and gradients of the reference, compiled once for all masks of a size."""
    return value_and_gradients(partial(reference_attention, mask=mask, scale=scale, soft_cap=soft_cap), inputs)


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=ONE_OP, rtol=ONE_OP, err_msg=name)
        assert array.any()
