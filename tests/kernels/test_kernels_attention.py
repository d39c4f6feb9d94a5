"""Attention against an independent NumPy implementation and the reference: values, all gradients, masks, dtypes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from lifecycle.core.typing import Array
from lifecycle.kernels.attention import attention, reference_attention
from lifecycle.kernels.mask import OUT_NAME, Mask
from lifecycle.parallel.placement import row_order

type Attention = Callable[..., Array]

ONE_OP = 1e-5  # float32, one operation
JITTED = jax.jit(attention)
BFLOAT16 = 2e-2  # three bfloat16 roundings of values of about 1


def inputs(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    seed: int = 0,
    value_dim: int | None = None,
) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = ((queries, heads, head_dim), (keys, kv_heads, head_dim), (keys, kv_heads, value_dim or head_dim))
    return [draw.normal(size=(batch, *shape)).astype(np.float32) for shape in shapes]


def row_mask(segments: np.ndarray, window: int | None = None) -> Mask:
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    ids = jnp.asarray(segments)
    return Mask(index, index, ids, ids, window)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(
    function: Attention, q: Array, k: Array, v: Array, mask: Mask
) -> tuple[Array, tuple[Array, ...]]:
    """The output, and the gradients of its sum."""
    out, pull = jax.vjp(lambda *x: function(*x, mask), q, k, v)
    return out, pull(jnp.ones_like(out))


def numpy_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: Mask,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Query by query, head by head, in float64."""
    out, kv = np.zeros((*q.shape[:3], v.shape[-1])), (k.astype(np.float64), v.astype(np.float64))
    positions, keys = np.asarray(mask.query_positions), np.asarray(mask.key_positions)
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = keys[b] <= positions[b, t]
        if mask.window is not None:
            seen &= keys[b] > positions[b, t] - mask.window
        if mask.query_segments is not None and mask.key_segments is not None:
            seen &= np.asarray(mask.key_segments)[b] == int(mask.query_segments[b, t])
        own_keys, own_values = (x[b, seen, h // (q.shape[2] // k.shape[2])] for x in kv)
        scores = own_keys @ q[b, t, h].astype(np.float64) * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
        total = np.exp(scores).sum() + (0 if sinks is None else np.exp(np.float64(sinks[h])))
        out[b, t, h] = np.exp(scores) @ own_values / total if seen.any() else 0
    return out


PACKED = np.array([[1, 1, 1, 2, 2, 2, 2, 3], [1, 1, 2, 2, 2, 0, 0, 0]])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_values_are_those_of_an_independent_implementation(kv_heads: int) -> None:
    q, k, v = inputs(2, 8, 8, 4, kv_heads, 6)
    mask = row_mask(PACKED)
    expected = numpy_attention(q, k, v, mask)
    for function in (attention, reference_attention):
        found = jax.jit(function)(*map(jnp.asarray, (q, k, v)), mask)
        np.testing.assert_allclose(found, expected, atol=ONE_OP, rtol=0)


@settings(max_examples=25)
@given(st.data())
def test_any_positions_and_segments(data: st.DataObject) -> None:
    """Cache-like masks: queries and keys of different number, at any positions, also rows that see no key."""
    ids = st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=2, max_size=2)
    keys, key_segments = (jnp.array(data.draw(ids)) for _ in range(2))
    positions, segments = (jnp.array(data.draw(ids))[:, :3] for _ in range(2))
    mask = Mask(positions, keys, segments, key_segments)
    q, k, v = inputs(2, 3, 5, 6, 2, 4)
    found = JITTED(*map(jnp.asarray, (q, k, v)), mask)
    np.testing.assert_allclose(found, numpy_attention(q, k, v, mask), atol=ONE_OP, rtol=0)


@pytest.mark.parametrize("segments", [None, PACKED], ids=["causal", "packed"])
def test_all_gradients_are_those_of_the_reference(segments: np.ndarray | None) -> None:
    q, k, v = map(jnp.asarray, inputs(2, 8, 8, 4, 2, 6))
    index = jnp.broadcast_to(jnp.arange(8), (2, 8))
    mask = row_mask(segments) if segments is not None else Mask(index, index)
    weight = jnp.asarray(inputs(2, 8, 8, 4, 2, 6, seed=1)[0])

    def gradients(function: Attention) -> tuple[Array, ...]:
        return jax.jit(jax.grad(lambda *x: (function(*x, mask) * weight).sum(), (0, 1, 2)))(q, k, v)

    for found, expected in zip(gradients(attention), gradients(reference_attention), strict=True):
        np.testing.assert_allclose(found, expected, atol=ONE_OP, rtol=0)
    check_grads(
        jax.jit(lambda q, k, v: attention(q, k, v, mask)), (q, k, v), order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )


def test_a_query_without_keys_gives_zeros_and_no_gradient() -> None:
    q, k, v = map(jnp.asarray, inputs(1, 4, 3, 2, 1, 4))
    mask = Mask(jnp.array([[0, 1, 2, 3]]), jnp.array([[2, 3, 9]]))  # the first two queries come before all keys
    for function in (attention, reference_attention):
        out, grads = value_and_gradients(function, q, k, v, mask)
        assert not out[:, :2].any() and out[:, 2:].all()
        assert not grads[0][:, :2].any() and not grads[1][:, 2].any() and not grads[2][:, 2].any()
        assert all(np.isfinite(grad).all() for grad in grads)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = map(jnp.asarray, inputs(1, 4, 4, 2, 2, 4))
    mask = row_mask(np.ones((1, 4), np.int32))
    out, grads = value_and_gradients(attention, q * 1e4, k * 1e4, v, mask)
    assert np.isfinite(out).all() and all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept_and_scores_are_float32(dtype: jnp.dtype) -> None:
    q, k, v = (jnp.asarray(x, dtype) for x in inputs(2, 8, 8, 4, 2, 6))
    mask = row_mask(PACKED)
    exact = numpy_attention(*(np.asarray(x.astype(jnp.float32)) for x in (q, k, v)), mask=mask)
    out, grads = value_and_gradients(attention, q, k, v, mask)
    assert out.dtype == dtype and [grad.dtype for grad in grads] == [dtype] * 3
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=BFLOAT16 if dtype == jnp.bfloat16 else ONE_OP)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    wide = value_and_gradients(attention, q, k, v, mask)[1]
    for found, expected in zip(grads, wide, strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=4 * BFLOAT16, rtol=BFLOAT16)


def test_segments_of_a_row_do_not_see_each_other() -> None:
    q, k, v = map(jnp.asarray, inputs(2, 8, 8, 4, 2, 6))
    mask = row_mask(PACKED)
    other = attention(q, k.at[0, :3].set(7.0), v.at[0, :3].set(7.0), mask)
    assert np.array_equal(other[0, 3:], attention(q, k, v, mask)[0, 3:])


FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "window": ({"window": 3}, {}),
    "scale": ({}, {"scale": 0.7}),
    "soft cap": ({}, {"soft_cap": 1.5}),
    "sinks": ({}, {"sinks": np.array([0.3, -1.0, 2.0, 0.0], np.float32)}),
    "all": ({"window": 2}, {"scale": 1.3, "soft_cap": 2.0, "sinks": np.array([0.3, -1.0, 2.0, 0.0], np.float32)}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_what_families_add_has_values_of_an_independent_implementation_and_gradients_of_the_reference(
    name: str,
) -> None:
    of_mask, of_scores = FEATURES[name]
    q, k, v = inputs(2, 8, 8, 4, 2, 6, value_dim=5)
    arguments = {"q": jnp.asarray(q), "k": jnp.asarray(k), "v": jnp.asarray(v)}
    options = {key: value for key, value in of_scores.items() if key != "sinks"}
    if "sinks" in of_scores:
        arguments["sinks"] = jnp.asarray(of_scores["sinks"])
    mask = row_mask(PACKED, **of_mask)
    weight = jnp.cos(jnp.arange(2.0 * 8 * 4 * 5)).reshape(2, 8, 4, 5)

    def computed(function: Attention) -> tuple[Array, dict[str, Array]]:
        def loss(x: dict[str, Array]) -> tuple[Array, Array]:
            out = function(**x, mask=mask, **options)
            return (out * weight).sum(), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(arguments)
        return out, gradients

    (ours, found), (references, expected) = computed(attention), computed(reference_attention)
    exact = numpy_attention(q, k, v, mask, **of_scores)
    for values in (ours, references):
        np.testing.assert_allclose(values, exact, atol=ONE_OP, rtol=0)
    for key in arguments:
        np.testing.assert_allclose(found[key], expected[key], atol=ONE_OP, rtol=0, err_msg=key)
        assert found[key].any()


@settings(max_examples=25)
@given(st.data())
def test_any_mask_with_window_cap_and_sinks(data: st.DataObject) -> None:
    """Masks as a cache gives them: also queries that see nothing but the sink."""
    ids = st.lists(st.integers(0, 6), min_size=5, max_size=5)
    keys, key_segments, positions, segments = (jnp.array([data.draw(ids)]) for _ in range(4))
    window = data.draw(st.none() | st.integers(1, 7))
    options = {"soft_cap": data.draw(st.none() | st.floats(0.5, 50)), "scale": data.draw(st.none() | st.floats(0.1, 2))}
    sinks = data.draw(st.none() | st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
    mask = Mask(positions[:, :3], keys, segments[:, :3], key_segments, window)
    q, k, v = inputs(1, 3, 5, 4, 2, 4, value_dim=3)
    row = None if sinks is None else np.array(sinks, np.float32)
    on_device = map(jnp.asarray, (q, k, v))
    found = partial(attention, mask=mask, **options)(*on_device, sinks=None if row is None else jnp.asarray(row))
    np.testing.assert_allclose(found, numpy_attention(q, k, v, mask, sinks=row, **options), atol=ONE_OP, rtol=0)


def test_with_a_sink_too_a_query_without_keys_gives_zeros_and_no_gradient() -> None:
    q, k, v = map(jnp.asarray, inputs(1, 2, 3, 2, 1, 4))
    mask = Mask(jnp.array([[0, 9]]), jnp.array([[2, 3, 9]]))
    for function in (attention, reference_attention):
        with_sinks = partial(function, sinks=jnp.array([-1e4, 3.0]), soft_cap=5.0)
        out, grads = value_and_gradients(with_sinks, q, k, v, mask)
        assert not out[:, 0].any() and out[:, 1].all()
        assert not grads[0][:, 0].any() and all(np.isfinite(grad).all() for grad in grads)


def test_a_remat_policy_finds_the_output_by_its_name() -> None:
    q, k, v = map(jnp.asarray, inputs(1, 8, 8, 2, 1, 4))
    policy = jax.checkpoint_policies.save_only_these_names(OUT_NAME)
    attend = partial(attention, mask=row_mask(PACKED[:1]))
    traced = jax.make_jaxpr(jax.checkpoint(attend, policy=policy))(q, k, v)
    assert f"name={OUT_NAME}" in str(traced)


@pytest.mark.parametrize(("length", "num_shards"), [(12, 1), (7, 1), (16, 2), (48, 4), (96, 8)])
def test_row_order_gives_each_device_the_same_causal_work(length: int, num_shards: int) -> None:
    order = row_order(length, num_shards)
    assert sorted(order) == list(range(length))
    parts = order.reshape(num_shards, -1)
    assert len({int((part + 1).sum()) for part in parts}) == 1  # a query at p sees p + 1 keys
    assert all((np.diff(part) == 1).sum() >= len(part) - 2 for part in parts)  # two runs at most


def test_row_order_refuses_unequal_chunks_and_names_the_fix() -> None:
    with pytest.raises(ValueError, match=r"seq_len to a multiple of 8 \(nearest: 24\) or a smaller mesh.context"):
        row_order(30, 4)


def whole_row_mask(segments: np.ndarray, window: int | None) -> Mask:
    index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    ids = jnp.asarray(segments)
    return Mask(index, index, ids, ids, window, num_shards=1)


@pytest.mark.parametrize(
    ("length", "window"),  # three runs, the last one shorter; four
    [
        (150, 40),
        (300, None),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((300, 1), (300, 200))),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((150, None), (150, 1), (150, 200), (300, 40))),
    ],
)
def test_a_row_in_runs_of_queries(length: int, window: int | None) -> None:
    """Rows long enough for a CPU to go through them in runs, with segments that cross the runs' ends."""
    rows = inputs(2, length, length, 2, 1, 6)
    q, k, v = map(jnp.asarray, rows)
    sinks, weight = np.array([0.5, -1.0], np.float32), inputs(2, length, length, 2, 1, 6, seed=1)[0]
    segments = np.repeat([[1, 2, 3], [1, 2, 0]], [length // 5, length // 2, length - length // 5 - length // 2], axis=1)
    mask = whole_row_mask(segments, window)
    expected = numpy_attention(rows[0], rows[1], rows[2], mask, soft_cap=5.0, sinks=sinks)

    def value_and_gradients(function: Attention) -> tuple[Array, ...]:
        def loss(q: Array, k: Array, v: Array, sinks: Array) -> tuple[Array, Array]:
            out = function(q, k, v, mask, soft_cap=5.0, sinks=sinks)
            return (out * weight).sum(), out

        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, jnp.asarray(sinks))
        return out, *gradients

    found = value_and_gradients(attention)
    np.testing.assert_allclose(found[0], expected, atol=ONE_OP, rtol=0)
    for own, wanted in zip(found, value_and_gradients(reference_attention), strict=True):
        np.testing.assert_allclose(own, wanted, atol=ONE_OP, rtol=ONE_OP)


def test_a_causal_row_costs_five_eighths_of_the_square() -> None:
    q, k, v = map(jnp.asarray, inputs(1, 256, 256, 1, 1, 64))
    mask = whole_row_mask(np.ones((1, 256), np.int32), None)

    def flops(function: Attention) -> float:
        costs = jax.jit(function).lower(q, k, v, mask).cost_analysis()
        assert costs is not None
        return costs["flops"]

    assert flops(attention) / flops(reference_attention) == pytest.approx(5 / 8, abs=0.02)
