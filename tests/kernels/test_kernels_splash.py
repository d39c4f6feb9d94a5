"""Splash under our schedule: interpreted against the reference, and compiled for chips that are not here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as library
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import process_mask
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels import attention as dispatch
from lifecycle.kernels.attention import attention, reference_attention
from lifecycle.kernels.mask import OUT_NAME, Mask
from lifecycle.kernels.splash import SplashBlocks, _infos, blocks_of, splash_attention
from lifecycle.parallel.axes import AXES
from lifecycle.parallel.placement import row_order
from tests.kernels.rows import ONE_OP, SINKS, arrays, assert_same, of_reference, row, value_and_gradients

SMALL = SplashBlocks(128, 128, 128)


CASES: dict[str, tuple[Mask, dict[str, Any], tuple[int, int]]] = {
    "causal": (row(256), {}, (16, 16)),
    "a length of no whole block": (row(200), {}, (16, 16)),
    "segments": (row(256, segment=90), {}, (16, 16)),
    "window": (row(384, window=70), {}, (16, 16)),
    "soft cap": (row(128), {"soft_cap": 2.0}, (16, 16)),
    "sinks": (row(128, segment=50), {"sinks": SINKS}, (16, 16)),
    "values narrower than keys": (row(128), {"scale": 0.3}, (24, 16)),
    "all": (row(300, segment=130, window=150), {"soft_cap": 3.0, "sinks": SINKS, "scale": 0.4}, (24, 8)),
}
DEFAULT = ("causal", "all")  # which has what the others have


@pytest.mark.parametrize(
    "name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_values_and_gradients_are_those_of_the_reference(name: str) -> None:
    mask, options, dims = CASES[name]
    inputs = arrays(mask.key_positions.shape[1], 4, 2, dims)
    inputs |= {"sinks": options["sinks"]} if "sinks" in options else {}
    options = {"scale": dims[0] ** -0.5, "soft_cap": options.get("soft_cap")} | {
        key: value for key, value in options.items() if key == "scale"
    }
    splash = partial(splash_attention, mask=mask, blocks=SMALL, interpret=True, **options)
    assert_same(value_and_gradients(splash, inputs), of_reference(inputs, mask, **options))


@pytest.mark.parametrize(
    "window", [pytest.param(None, marks=pytest.mark.long), pytest.param(130, marks=pytest.mark.slow)]
)
def test_a_load_balanced_part_of_the_queries_on_each_device(window: int | None) -> None:
    num_shards, length = 4, 1024
    inputs, mask = arrays(length, 2, 1, (8, 8)), row(length, segment=300, window=window)
    order = row_order(length, num_shards)
    mesh = Mesh(np.array(jax.devices()[:num_shards]).reshape(1, 1, 1, 1, num_shards, 1), AXES)

    def part(q: Array, k: Array, v: Array, positions: Array, queries: Array, keys: Array) -> Array:
        own = Mask(positions, mask.key_positions, queries, keys, window, num_shards)
        return splash_attention(q, k, v, own, scale=0.5, blocks=SMALL, interpret=True)

    cut = P(None, "context")
    parts = jax.shard_map(part, mesh=mesh, in_specs=(cut, P(), P(), cut, cut, P()), out_specs=cut, check_vma=False)

    def splash(q: Array, k: Array, v: Array) -> Array:
        assert mask.query_segments is not None and mask.key_segments is not None
        out = parts(q[:, order], k, v, mask.query_positions[:, order], mask.query_segments[:, order], mask.key_segments)
        return jnp.zeros_like(out).at[:, order].set(out)

    assert_same(value_and_gradients(splash, inputs), of_reference(inputs, mask, scale=0.5))


@pytest.mark.slow
def test_bfloat16_stays_bfloat16() -> None:
    inputs = {name: x.astype(jnp.bfloat16) for name, x in arrays(128, 2, 1, (16, 16)).items()}
    found = value_and_gradients(
        partial(splash_attention, mask=row(128), scale=0.25, blocks=SMALL, interpret=True), inputs
    )
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    exact = reference_attention(**{name: x.astype(jnp.float32) for name, x in inputs.items()}, mask=row(128))
    np.testing.assert_allclose(found["out"].astype(jnp.float32), exact, atol=0.03)


@settings(max_examples=15)
@given(blocks=st.integers(1, 6), num_shards=st.sampled_from([1, 2, 4]), window=st.none() | st.integers(1, 700))
def test_the_schedule_visits_what_the_librarys_own_visits(blocks: int, num_shards: int, window: int | None) -> None:
    """The library finds seen blocks by looking at every pair of positions; ours reasons with a block's ends."""
    length = 128 * 2 * num_shards * blocks
    order = row_order(length, num_shards)
    dense = library.CausalMask((length, length))
    if window is not None:
        dense &= library.LocalMask((length, length), (window - 1, 0), offset=0)
    dense = library.NumpyMask(np.asarray(dense[:, :])[order])
    theirs, _ = process_mask(library.MultiHeadMask([dense]), (128, 128), q_seq_shards=num_shards)
    forward, _, backward = _infos((length // num_shards, length), num_shards, window, 128, 128)
    seen = np.asarray(dense[:, :]).reshape(num_shards, 2 * blocks, 128, -1, 128).any((2, 4))
    for device in range(num_shards):
        for query, keys in enumerate(seen[device]):
            runs = np.asarray(forward.block_mask)[device, 0, query] == 1
            assert np.asarray(forward.data_next)[device, 0, query][runs].tolist() == np.flatnonzero(keys).tolist()
        for key, queries in enumerate(seen[device].T):
            runs = np.asarray(backward.block_mask)[device, 0, :, key] == 1
            assert np.asarray(backward.data_next)[device, 0, :, key][runs].tolist() == np.flatnonzero(queries).tolist()
    assert (
        np.asarray(forward.block_mask).shape[-1] == np.asarray(theirs.block_mask).shape[-1]
    )  # no longer than the library's grid


def test_a_long_rows_schedule_takes_no_time() -> None:
    _infos.cache_clear()
    forward, _, backward = _infos((131072 // 16, 131072), 16, None, 1024, 1024)
    steps = np.asarray(forward.data_next)
    assert steps.shape == (16, 1, 8, 128) and steps.dtype == np.int8
    assert np.asarray(backward.q_sequence).shape == (16, 8192)


def test_a_remat_policy_saves_output_and_log_sum_exp() -> None:
    inputs = arrays(128, 2, 1, (16, 16), batch=1)
    run = partial(splash_attention, mask=row(128, 1), scale=0.25, blocks=SMALL, interpret=True)

    def kernels(policy: Any) -> int:
        function = jax.checkpoint(lambda x: run(**x).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(function))(inputs)).count("name=splash_mha_fwd")

    saved = kernels(jax.checkpoint_policies.save_only_these_names(OUT_NAME))
    assert kernels(jax.checkpoint_policies.nothing_saveable) == saved + 1


# Chips that are not here


@pytest.fixture
def v5p(monkeypatch: pytest.MonkeyPatch) -> Mesh:
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    return Mesh(np.array(devices).reshape(1, 1, 4, 1, 1, 1), AXES)


def lowered(mesh: Mesh, length: int, heads: int, kv_heads: int, dims: tuple[int, int], **options: Any) -> Any:
    """`attention` and its gradients on each device of a mesh, two rows to a device, in bfloat16."""

    def step(q: Array, k: Array, v: Array, ids: Array) -> Any:
        index = jnp.broadcast_to(jnp.arange(length), ids.shape)
        mask = Mask(index, index, ids, ids, options.get("window"), 1)
        with_cap = partial(attention, mask=mask, soft_cap=options.get("soft_cap"), sinks=options.get("sinks"))
        return jax.grad(lambda *x: with_cap(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    batch = P("fsdp")
    cut = jax.shard_map(step, mesh=mesh, in_specs=batch, out_specs=batch, check_vma=False)

    def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((8, length, *shape), dtype, sharding=jax.NamedSharding(mesh, batch))

    inputs = array(heads, dims[0]), array(kv_heads, dims[0]), array(kv_heads, dims[1]), array(dtype=jnp.int32)
    return jax.jit(cut).lower(*inputs)


@pytest.mark.aot
@pytest.mark.parametrize(("dim", "kernels"), [(64, 3), (128, 2)], ids=["splash", "flash"])
def test_for_a_topology_only_kernels_are_in_the_program(v5p: Mesh, dim: int, kernels: int) -> None:
    """Splash where heads are no whole lanes: forward; dk and dv; dq. Else flash: forward and backward."""
    text = lowered(v5p, 256, 4, 2, (dim, dim)).as_text()
    assert text.count("tpu_custom_call") == kernels
    assert "stablehlo.exponential" not in text  # that of a softmax; a kernel's is bytecode


@pytest.mark.aot
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dims", "options"),
    [
        (32, 8, (128, 128), {}),  # Llama-3.1-8B
        pytest.param(64, 8, (64, 64), {"window": 128, "sinks": jnp.zeros(64)}, marks=pytest.mark.long),  # gpt-oss
        pytest.param(16, 8, (256, 256), {"window": 4096, "soft_cap": 50.0}, marks=pytest.mark.long),  # Gemma 2
        pytest.param(16, 16, (192, 128), {}, marks=pytest.mark.long),  # DeepSeek, a tensor-parallel part of its heads
    ],
    ids=["llama", "gpt-oss", "gemma", "deepseek"],
)
def test_families_compile_for_v5p(
    v5p: Mesh, heads: int, kv_heads: int, dims: tuple[int, int], options: dict[str, Any]
) -> None:
    compiled = lowered(v5p, 8192, heads, kv_heads, dims, **options).compile()
    scores = 2 * heads * 8192 * 8192 * 2
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4  # no scores in memory


def test_tiles_by_chip_and_head() -> None:
    assert blocks_of("TPU v5", 128) == SplashBlocks(1024, 1024, 512)
    assert blocks_of("TPU v6 lite", 128).q == 2048 and blocks_of("TPU7x", 256).q == 1024
    assert blocks_of("TPU v5", 512) == SplashBlocks(512, 512, 256)


def test_a_cache_is_not_for_splash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `num_shards` positions are unknown, on a TPU too; with it, this process would run a TPU's kernel."""
    inputs = arrays(128, 2, 1, (16, 16))
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    index = row(128).key_positions
    np.testing.assert_allclose(
        attention(**inputs, mask=Mask(index, index)), reference_attention(**inputs, mask=row(128)), atol=ONE_OP
    )
    assert "splash_mha_fwd" in str(jax.make_jaxpr(lambda x: attention(**x, mask=row(128)))(inputs))
