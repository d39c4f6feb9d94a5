"""Our flash kernels: interpreted against the reference, and compiled for chips that are not here."""

import math
import re
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

from lifecycle.core.typing import Array
from lifecycle.kernels import flash_blocks as fb
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.flash import flash_attention
from lifecycle.kernels.flash_blocks import FlashBlocks, Plan, blocks_of
from lifecycle.kernels.linear import linear
from lifecycle.kernels.mask import OUT_NAME, Mask
from lifecycle.kernels.rotary import rotary_angles, rotate
from lifecycle.kernels.rotary_rows import rotate_rows
from lifecycle.parallel.axes import AXES
from lifecycle.parallel.placement import row_order
from tests.kernels.rows import ONE_OP, SINKS, arrays, assert_same, of_reference, row, value_and_gradients

SMALL = FlashBlocks(q=128, kv=128, tile=128)


WIDE = FlashBlocks(q=128, kv=512, tile=256)
CASES: dict[str, tuple[Mask, dict[str, Any], tuple[int, int]]] = {
    "causal": (row(256), {}, (16, 16)),
    "two lanes' tiles to a head": (row(256), {}, (256, 128)),
    "a length of no whole block": (row(200), {}, (16, 16)),
    "key blocks longer than query blocks": (row(500, segment=90), {"blocks": WIDE}, (16, 16)),
    "query blocks longer than key blocks": (row(512), {"blocks": FlashBlocks(256, 128, 256)}, (16, 16)),
    "segments": (row(256, segment=90), {}, (16, 16)),
    "several tiles to a block": (row(512, segment=200, window=300), {"blocks": FlashBlocks(256, 512, 128)}, (16, 16)),
    "segments that whole blocks do not share": (row(512, segment=130), {}, (16, 16)),
    "window": (row(384, window=70), {}, (16, 16)),
    "soft cap": (row(128), {"soft_cap": 2.0}, (16, 16)),
    "sinks": (row(256, segment=50), {"sinks": SINKS}, (16, 16)),
    "values narrower than keys": (row(128), {"scale": 0.3}, (24, 16)),
    "gradients of queries in parts": (
        row(384, segment=90),
        {"blocks": FlashBlocks(128, 128, 128, dq_bytes=1)},
        (16, 16),
    ),
    "all": (row(300, segment=130, window=150), {"soft_cap": 3.0, "sinks": SINKS, "scale": 0.4}, (24, 8)),
}
DEFAULT = ("causal", "all")  # which has what the others have, but for their blocks


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    mask, options, dims = CASES[name]
    inputs = arrays(mask.key_positions.shape[1], 4, 2, dims)
    inputs |= {"sinks": options["sinks"]} if "sinks" in options else {}
    same = {"scale": options.get("scale", dims[0] ** -0.5), "soft_cap": options.get("soft_cap")}
    flash = partial(flash_attention, mask=mask, blocks=options.get("blocks", SMALL), interpret=True, **same)
    assert_same(value_and_gradients(flash, inputs), of_reference(inputs, mask, **same))


@pytest.mark.long
@settings(max_examples=4)
@given(data=st.data())
def test_any_shape_is_as_the_reference(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, per_group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    dims = draw(st.sampled_from([(8, 8), (64, 64), (72, 16)]))
    length = draw(st.integers(1, 300))
    mask = row(length, 1, draw(st.none() | st.integers(1, 300)), draw(st.none() | st.integers(1, 400)))
    sizes = st.sampled_from([128, 256])
    blocks = FlashBlocks(draw(sizes), draw(sizes), draw(sizes))
    inputs = arrays(length, kv_heads * per_group, kv_heads, dims, batch=1)
    flash = partial(flash_attention, mask=mask, scale=0.3, blocks=blocks, interpret=True)
    expected, found = of_reference(inputs, mask, scale=0.3), value_and_gradients(flash, inputs)
    for name, array in expected.items():  # one position alone has gradients of zero
        np.testing.assert_allclose(found[name], array, atol=ONE_OP, rtol=ONE_OP, err_msg=name)


@pytest.mark.parametrize(
    ("length", "window"),
    [
        pytest.param(1024, None, marks=pytest.mark.long),
        pytest.param(1024, 130, marks=pytest.mark.slow),
        pytest.param(1200, None, marks=pytest.mark.long),
    ],
)
def test_a_load_balanced_part_of_the_queries_on_each_device(length: int, window: int | None) -> None:
    num_shards = 4
    inputs, mask = arrays(length, 2, 1, (8, 8)), row(length, segment=300, window=window)
    order = row_order(length, num_shards)
    mesh = Mesh(np.array(jax.devices()[:num_shards]).reshape(1, 1, 1, 1, num_shards, 1), AXES)

    def part(q: Array, k: Array, v: Array, positions: Array, queries: Array, keys: Array) -> Array:
        own = Mask(positions, mask.key_positions, queries, keys, window, num_shards)
        return flash_attention(q, k, v, own, scale=0.5, blocks=SMALL, interpret=True)

    cut = P(None, "context")
    parts = jax.shard_map(part, mesh=mesh, in_specs=(cut, P(), P(), cut, cut, P()), out_specs=cut, check_vma=False)

    def flash(q: Array, k: Array, v: Array) -> Array:
        assert mask.query_segments is not None and mask.key_segments is not None
        out = parts(q[:, order], k, v, mask.query_positions[:, order], mask.query_segments[:, order], mask.key_segments)
        return jnp.zeros_like(out).at[:, order].set(out)

    assert_same(value_and_gradients(flash, inputs), of_reference(inputs, mask, scale=0.5))


def test_a_remat_policy_saves_output_and_log_sum_exp() -> None:
    inputs = arrays(128, 2, 1, (16, 16), batch=1)
    run = partial(flash_attention, mask=row(128, 1), scale=0.25, blocks=SMALL, interpret=True)

    def kernels(policy: Any) -> int:
        function = jax.checkpoint(lambda x: run(**x).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(function))(inputs)).count("name=flash_fwd")

    assert kernels(jax.checkpoint_policies.save_only_these_names(OUT_NAME)) == 1
    assert kernels(jax.checkpoint_policies.nothing_saveable) == 2


def test_rotating_rows_is_the_rotation() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 3, 128)), jnp.float32)
    positions = jnp.arange(40) + jnp.array([[0], [1000]])
    angles = rotary_angles(positions, 128, 10000.0)
    whole = jnp.concatenate([angles, angles], -1)[:, :, :, 0]
    expected, back = jax.vjp(lambda x: rotate(x, angles), x)
    found, own_back = jax.vjp(lambda x: rotate_rows(x, whole, True), x)
    np.testing.assert_allclose(found, expected, atol=ONE_OP)
    np.testing.assert_allclose(own_back(x)[0], back(x)[0], atol=ONE_OP)


@settings(max_examples=25)
@given(data=st.data())
def test_steps_visit_each_pair_of_blocks_that_is_seen_once(data: st.DataObject) -> None:
    num_shards, window = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.none() | st.integers(1, 900))
    length = 2 * num_shards * data.draw(st.integers(1, 300))
    sizes = st.sampled_from([128, 256])
    plan = Plan(
        6,
        2,
        128,
        128,
        length,
        num_shards,
        window,
        1.0,
        None,
        FlashBlocks(data.draw(sizes), data.draw(sizes), 128),
        True,
    )
    queries = row_order(length, num_shards).reshape(num_shards, plan.chunks, -1)
    padded = np.full((num_shards, plan.chunks, plan.q.length), -1)  # padding sees nothing
    padded[..., : plan.chunk] = queries
    keys = np.arange(plan.kv.length)
    dense = (padded[..., None] >= keys) & (keys > padded[..., None] - (window or length))
    seen = dense.reshape(num_shards, plan.num_q, plan.q.block, plan.kv.num, plan.kv.block).any((2, 4))
    split = data.draw(st.integers(0, plan.num_q - 1))
    for device in range(num_shards):
        assert_visits(fb.forward_steps(plan)[device], seen[device][None])
        part = seen[device, split:]
        steps = fb.backward_steps(plan, (split, plan.num_q))[device]
        assert_visits(steps, np.broadcast_to(part, (plan.per_group, *part.shape)))
        assert_written_once(steps, plan.per_group * len(part))


def assert_visits(steps: np.ndarray, seen: np.ndarray) -> None:
    runs = steps[:, steps[fb.FLAGS] & fb.RUNS != 0]
    heads = runs[fb.HEAD] if len(runs) > fb.HEAD else np.zeros_like(runs[0])
    visited = list(zip(heads.tolist(), runs[fb.QUERY].tolist(), runs[fb.KEY].tolist(), strict=True))
    assert sorted(visited) == [tuple(x) for x in np.argwhere(seen).tolist()]


def assert_written_once(steps: np.ndarray, windows: int) -> None:
    """Pallas writes a window when the next one comes: each may come but once, and holds what is done at that step."""
    window = steps[[fb.DONE_HEAD, fb.DONE_QUERY]].T
    changes = 1 + np.any(np.diff(window, axis=0) != 0, axis=1).sum()
    done = steps[:, steps[fb.FLAGS] & fb.DONE != 0]
    assert changes == windows == done.shape[1]
    assert np.array_equal(done[[fb.DONE_HEAD, fb.DONE_QUERY]], done[[fb.HEAD, fb.QUERY]])


@pytest.mark.slow
def test_bfloat16_stays_bfloat16() -> None:
    inputs = {name: x.astype(jnp.bfloat16) for name, x in arrays(128, 2, 1, (16, 16)).items()}
    flash = partial(flash_attention, mask=row(128), scale=0.25, blocks=SMALL, interpret=True)
    found = value_and_gradients(flash, inputs)
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    exact = reference_attention(**{name: x.astype(jnp.float32) for name, x in inputs.items()}, mask=row(128))
    np.testing.assert_allclose(found["out"].astype(jnp.float32), exact, atol=0.03)


def test_a_long_rows_steps_fit_into_scalar_memory() -> None:
    plan = Plan(32, 8, 128, 128, 131072, 16, None, 1.0, None, blocks_of("TPU v5", 128), False)
    assert fb.forward_steps(plan).shape == (16, 3, 130)
    assert fb.backward_steps(plan, (0, plan.num_q)).nbytes / 16 < 1 << 15  # of 1 MB


# Chips that are not here


def on_topology(name: str, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return Mesh(np.array(devices).reshape(1, 1, -1, 1, 1, 1), AXES)


def array(mesh: Mesh, spec: P, *shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "heads", "kv_heads", "dims", "options"),
    [
        ("v5p:2x2x1", 32, 8, (128, 128), {}),  # Llama-3.1-8B
        pytest.param("v6e:2x2", 64, 8, (128, 128), {}, marks=pytest.mark.long),  # Llama-3.1-70B
        pytest.param("v4:2x2x1", 32, 8, (128, 128), {}, marks=pytest.mark.long),
        ("v5e:2x2", 32, 8, (128, 128), {}),
        pytest.param("tpu7x:1x2x1", 32, 8, (128, 128), {}, marks=pytest.mark.long),  # two devices a chip
        ("v5p:2x2x1", 64, 8, (64, 64), {"window": 128}),  # gpt-oss
        ("v5p:2x2x1", 16, 8, (256, 256), {"window": 4096, "soft_cap": 50.0}),  # Gemma 2
        ("v5p:2x2x1", 16, 16, (192, 128), {}),  # DeepSeek, a tensor-parallel part of its heads
    ],
    ids=["llama", "llama-70b", "v4", "v5e", "tpu7x", "gpt-oss", "gemma", "deepseek"],
)
def test_families_compile(
    topology: str, heads: int, kv_heads: int, dims: tuple[int, int], options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Two rows of 8,192 positions to a device, with their gradients; no scores in memory."""
    mesh, cut = on_topology(topology, monkeypatch), P("fsdp")
    blocks = blocks_of(mesh.devices.flat[0].device_kind, max(dims))
    sinks = jnp.zeros(heads) if options.get("window") == 128 else None

    def step(q: Array, k: Array, v: Array, ids: Array) -> Any:
        index = jnp.broadcast_to(jnp.arange(8192), ids.shape)
        mask = Mask(index, index, ids, ids, options.get("window"), 1)
        flash = partial(
            flash_attention, mask=mask, scale=0.1, soft_cap=options.get("soft_cap"), sinks=sinks, blocks=blocks
        )
        return jax.grad(lambda *x: flash(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    shapes = [(heads, dims[0]), (kv_heads, dims[0]), (kv_heads, dims[1])]
    inputs = [array(mesh, cut, 8, 8192, *shape) for shape in shapes] + [array(mesh, cut, 8, 8192, dtype=jnp.int32)]
    mapped = jax.shard_map(step, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    compiled: Any = jax.jit(mapped).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * heads * 8192 * 8192 * 2 / 4
    backward_runs = 4 if topology.startswith("v4") else 1  # it has a quarter of v5p's VMEM
    assert compiled.as_text().count("tpu_custom_call") == 1 + backward_runs


@pytest.mark.aot
@pytest.mark.matrix
def test_between_projections_and_kernels_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama-3.1-8B's attention with its gradients: the compiled program holds no copy of more than a megabyte."""
    mesh, length, dim = on_topology("v5p:2x2x1", monkeypatch), 8192, 128

    def block(x: Array, weights: list[Array], ids: Array, angles: Array) -> Array:
        q, k, v, o = weights
        index = jnp.broadcast_to(jnp.arange(length), ids.shape)
        query, key, value = (linear(x, w).reshape(*x.shape[:2], -1, dim) for w in (q, k, v))
        query, key = rotate_rows(query, angles), rotate_rows(key, angles)
        mask = Mask(index, index, ids, ids, None, 1)
        out = flash_attention(query, key, value, mask, scale=0.1, blocks=blocks_of("TPU v5", dim))
        return linear(out.reshape(*x.shape[:2], -1), o)

    def step(x: Array, weights: list[Array], ids: Array, angles: Array, grad: Array) -> Any:
        out, back = jax.vjp(lambda x, weights: block(x, weights, ids, angles), x, weights)
        return out, back(grad)

    rows, whole = P("fsdp"), P()
    x = array(mesh, rows, 8, length, 4096)
    weights = [array(mesh, whole, *shape) for shape in ((4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096))]
    inputs = x, weights, array(mesh, rows, 8, length, dtype=jnp.int32), array(
        mesh, P(None, "fsdp"), 2, 8, length, dim, dtype=jnp.float32
    ), x  # fmt: skip
    specs = rows, whole, rows, P(None, "fsdp"), rows
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=(rows, (rows, whole)), check_vma=False)
    compiled: Any = jax.jit(mapped).lower(*inputs).compile({"xla_tpu_scoped_vmem_limit_kib": 65536})
    text = compiled.as_text()
    moved = re.findall(r"= \w+\[([\d,]+)\][^=]* (?:copy|transpose)\(", text)
    assert not [dims for dims in moved if math.prod(map(int, dims.split(","))) > 1 << 20]
    assert text.count("tpu_custom_call") == 6  # flash forward and backward, q and k rotated and back
