"""Our flash kernels: interpreted against the reference, and compiled for chips that are not here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.mesh import AXES
from lifecycle.core.typing import Array
from lifecycle.kernels import flash_blocks as fb
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.flash import blocks_of, flash_attention
from lifecycle.kernels.flash_blocks import Blocks, Plan
from lifecycle.kernels.mask import OUT_NAME, Mask, row_order

ONE_OP = 1e-5
SMALL = Blocks(q=128, kv=128, tile=128)


def arrays(length: int, heads: int, kv_heads: int, dims: tuple[int, int], batch: int = 2) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = {"q": (heads, dims[0]), "k": (kv_heads, dims[0]), "v": (kv_heads, dims[1])}
    return {name: jnp.asarray(draw.normal(size=(batch, length, *shape)), jnp.float32) for name, shape in shapes.items()}


def row(length: int, batch: int = 2, segment: int | None = None, window: int | None = None, ways: int = 1) -> Mask:
    """A row's mask; segments of `segment` positions each, shifted by a third from row to row."""
    index = jnp.broadcast_to(jnp.arange(length), (batch, length))
    ids = None if segment is None else 1 + (index + segment // 3 * jnp.arange(batch)[:, None]) // segment
    return Mask(index, index, ids, ids, window, ways)


def value_and_gradients(function: Callable[..., Array], inputs: dict[str, Array]) -> dict[str, Array]:
    def loss(inputs: dict[str, Array]) -> tuple[Array, Array]:
        out = function(**inputs)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    return {"out": out, **gradients}


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=ONE_OP, rtol=ONE_OP, err_msg=name)
        assert array.any()


SINKS = jnp.array([0.5, -1.0, 2.0, 0.0])
WIDE = Blocks(q=128, kv=512, tile=256)
CASES: dict[str, tuple[Mask, dict[str, Any], tuple[int, int]]] = {
    "causal": (row(256), {}, (16, 16)),
    "two lanes' tiles to a head": (row(256), {}, (256, 128)),
    "a length of no whole block": (row(200), {}, (16, 16)),
    "key blocks longer than query blocks": (row(500, segment=90), {"blocks": WIDE}, (16, 16)),
    "query blocks longer than key blocks": (row(512), {"blocks": Blocks(256, 128, 256)}, (16, 16)),
    "segments": (row(256, segment=90), {}, (16, 16)),
    "several tiles to a block": (row(512, segment=200, window=300), {"blocks": Blocks(256, 512, 128)}, (16, 16)),
    "segments that whole blocks do not share": (row(512, segment=130), {}, (16, 16)),
    "window": (row(384, window=70), {}, (16, 16)),
    "soft cap": (row(128), {"soft_cap": 2.0}, (16, 16)),
    "sinks": (row(256, segment=50), {"sinks": SINKS}, (16, 16)),
    "values narrower than keys": (row(128), {"scale": 0.3}, (24, 16)),
    "gradients of queries in parts": (row(384, segment=90), {"blocks": Blocks(128, 128, 128, dq_bytes=1)}, (16, 16)),
    "all": (row(300, segment=130, window=150), {"soft_cap": 3.0, "sinks": SINKS, "scale": 0.4}, (24, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    mask, options, dims = CASES[name]
    inputs = arrays(mask.key_positions.shape[1], 4, 2, dims)
    inputs |= {"sinks": options["sinks"]} if "sinks" in options else {}
    same = {"scale": options.get("scale", dims[0] ** -0.5), "soft_cap": options.get("soft_cap")}
    flash = partial(flash_attention, mask=mask, blocks=options.get("blocks", SMALL), interpret=True, **same)
    expected = value_and_gradients(partial(reference_attention, mask=mask, **same), inputs)
    assert_same(value_and_gradients(flash, inputs), expected)


@settings(max_examples=12)
@given(data=st.data())
def test_any_shape_is_as_the_reference(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, per_group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    dims = draw(st.sampled_from([(8, 8), (64, 64), (72, 16)]))
    length = draw(st.integers(1, 400))
    mask = row(length, 1, draw(st.none() | st.integers(1, 300)), draw(st.none() | st.integers(1, 400)))
    sizes = st.sampled_from([128, 256])
    blocks = Blocks(draw(sizes), draw(sizes), draw(sizes))
    inputs = arrays(length, kv_heads * per_group, kv_heads, dims, batch=1)
    flash = partial(flash_attention, mask=mask, scale=0.3, blocks=blocks, interpret=True)
    expected = value_and_gradients(partial(reference_attention, mask=mask, scale=0.3), inputs)
    found = value_and_gradients(flash, inputs)
    for name, array in expected.items():  # one position alone has gradients of zero
        np.testing.assert_allclose(found[name], array, atol=ONE_OP, rtol=ONE_OP, err_msg=name)


@pytest.mark.parametrize(("length", "window"), [(1024, None), (1024, 130), (1200, None)])
def test_a_load_balanced_part_of_the_queries_on_each_device(length: int, window: int | None) -> None:
    ways = 4
    inputs, mask = arrays(length, 2, 1, (8, 8)), row(length, segment=300, window=window)
    order = row_order(length, ways)
    mesh = Mesh(np.array(jax.devices()[:ways]).reshape(1, 1, 1, 1, ways, 1), AXES)

    def part(q: Array, k: Array, v: Array, positions: Array, queries: Array, keys: Array) -> Array:
        own = Mask(positions, mask.key_positions, queries, keys, window, ways)
        return flash_attention(q, k, v, own, scale=0.5, blocks=SMALL, interpret=True)

    cut = P(None, "context")
    parts = jax.shard_map(part, mesh=mesh, in_specs=(cut, P(), P(), cut, cut, P()), out_specs=cut, check_vma=False)

    def flash(q: Array, k: Array, v: Array) -> Array:
        assert mask.query_segments is not None and mask.key_segments is not None
        out = parts(q[:, order], k, v, mask.query_positions[:, order], mask.query_segments[:, order], mask.key_segments)
        return jnp.zeros_like(out).at[:, order].set(out)

    expected = value_and_gradients(partial(reference_attention, mask=mask, scale=0.5), inputs)
    assert_same(value_and_gradients(flash, inputs), expected)
