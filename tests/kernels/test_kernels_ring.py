"""Ring attention on eight virtual devices against the reference on one: values and all gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels import ring
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.ring import ring_attention
from lifecycle.parallel.axes import AXES
from lifecycle.parallel.placement import row_order
from tests.kernels.rows import ONE_OP, SINKS, assert_same, of_reference, value_and_gradients


def arrays(length: int, dims: tuple[int, int] = (8, 8), dtype: Any = jnp.float32) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = {"q": (4, dims[0]), "k": (2, dims[0]), "v": (2, dims[1])}
    return {name: jnp.asarray(draw.normal(size=(2, length, *shape)), dtype) for name, shape in shapes.items()}


def row(length: int, segment: int | None = None, window: int | None = None) -> Mask:
    places = np.broadcast_to(np.arange(length), (2, length))
    ids = None if segment is None else jnp.asarray(1 + (places + np.arange(2)[:, None]) // segment, jnp.int32)
    index = jnp.asarray(places, jnp.int32)
    return Mask(index, index, ids, ids, window)


def on_devices(num_shards: int, mask: Mask, **options: Any) -> Callable[..., Array]:
    """Ring attention of whole rows, each device holding its load-balanced part; two batch groups beside."""
    mesh = Mesh(np.array(jax.devices()[: 2 * min(num_shards, 4)]).reshape(1, 1, -1, 1, min(num_shards, 4), 1), AXES)
    if num_shards == 8:
        mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 1, 1, 8, 1), AXES)
    order = row_order(mask.key_positions.shape[1], num_shards)
    segments = mask.key_segments

    def part(q: Array, k: Array, v: Array, sinks: Array | None, positions: Array, ids: Array | None) -> Array:
        return ring_attention(
            q, k, v, Mask(positions, positions, ids, ids, mask.window, num_shards), sinks=sinks, **options
        )

    cut = P("fsdp", "context")
    specs = (cut, cut, cut, P(), cut, cut)
    parts = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=cut, check_vma=False)

    def attend(q: Array, k: Array, v: Array, sinks: Array | None = None) -> Array:
        ids = None if segments is None else segments[:, order]
        out = parts(q[:, order], k[:, order], v[:, order], sinks, mask.key_positions[:, order], ids)
        return jnp.zeros_like(out).at[:, order].set(out)

    return attend


CASES: dict[str, tuple[int, Mask, dict[str, Any]]] = {
    "two ways": (2, row(64), {}),
    "four ways": (4, row(64), {}),
    "eight ways": (8, row(64), {}),
    "segments": (4, row(64, segment=11), {}),
    "window": (8, row(64, window=9), {}),
    "soft cap": (2, row(32), {"soft_cap": 1.5}),
    "sinks": (4, row(64), {"sinks": SINKS}),
    "all": (8, row(64, segment=21, window=17), {"soft_cap": 2.0, "sinks": SINKS, "scale": 0.6}),
}
LONG = ("segments", "soft cap", "window", "sinks")  # "all" has them too
MARKS = dict.fromkeys(LONG, pytest.mark.long) | dict.fromkeys(("two ways", "eight ways"), pytest.mark.slow)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES],
)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    num_shards, mask, options = CASES[name]
    inputs = arrays(mask.key_positions.shape[1], dims=(8, 6))
    if "sinks" in options:
        inputs["sinks"] = options["sinks"]
    static = {key: value for key, value in options.items() if key != "sinks"}
    found = value_and_gradients(on_devices(num_shards, mask, **static), inputs)
    assert_same(found, of_reference(inputs, mask, **static))


@pytest.mark.parametrize(
    "block",
    [pytest.param(1, marks=pytest.mark.slow), 3, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, 5))],
)
def test_blocks_of_keys_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "BLOCK", block)
    mask = row(48, segment=13, window=20)
    inputs = arrays(48)
    assert_same(value_and_gradients(on_devices(2, mask), inputs), of_reference(inputs, mask))


@pytest.mark.slow
@settings(max_examples=10)
@given(st.data())
def test_any_positions_and_segments_in_any_order(data: st.DataObject) -> None:
    """Nothing depends on the load-balanced order, not even that positions differ."""
    ids = st.lists(st.integers(0, 5), min_size=8, max_size=8)
    positions, segments = (jnp.array([data.draw(ids), data.draw(ids)]) for _ in range(2))
    window = data.draw(st.none() | st.integers(1, 5))
    mask = Mask(positions, positions, segments, segments, window)
    inputs = arrays(8)
    found = ring_attention(**inputs, mask=mask)
    np.testing.assert_allclose(found, reference_attention(**inputs, mask=mask), atol=ONE_OP)


def test_no_device_ever_holds_a_whole_rows_keys_or_scores() -> None:
    length, num_shards = 64, 4
    text = jax.jit(on_devices(num_shards, row(length))).lower(**arrays(length)).as_text()
    manual = text[text.index("sdy.manual_computation") :]
    assert "collective_permute" in manual and "all_gather" not in manual
    assert f"x{length}x" not in manual[: manual.index("sdy.return")]


@pytest.mark.slow
def test_bfloat16_stays_bfloat16_with_float32_sums() -> None:
    inputs = arrays(64, dtype=jnp.bfloat16)
    found = value_and_gradients(on_devices(4, row(64)), inputs)
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    exact = reference_attention(**{name: x.astype(jnp.float32) for name, x in inputs.items()}, mask=row(64))
    np.testing.assert_allclose(found["out"].astype(jnp.float32), exact, atol=2e-2)
