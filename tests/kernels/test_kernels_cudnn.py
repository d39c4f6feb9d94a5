"""cuDNN's kernels are in the program for an NVIDIA GPU with the mask that was asked for, or are left out with reason.

No GPU runs here: the programs are lowered for one. What lowering asks of the machine, cuDNN's version, is set.
"""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array
from lifecycle.kernels import attention as dispatch
from lifecycle.kernels.attention import attention, reference_attention
from lifecycle.kernels.cudnn import LARGEST_PLAIN_SCORES, limitations
from lifecycle.kernels.mask import OUT_NAME, Mask

LENGTH = 256


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    version = SimpleNamespace(cudnn_get_version=lambda: 91100)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)


def traced(
    dtype: Any = jnp.bfloat16,
    num_shards: int = 1,
    window: int | None = None,
    is_packed: bool = False,
    dims: tuple[int, int] = (64, 64),
    **options: Any,
) -> Any:
    """`attention` and its gradients over a row, or a part of one, of 8 query and 2 key heads."""

    def step(q: Array, k: Array, v: Array, queries: Array, keys: Array) -> Any:
        segments = (queries // 100, keys // 100) if is_packed else (None, None)
        mask = Mask(queries, keys, *segments, window, num_shards)
        attend = partial(attention, mask=mask, **options)
        return jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    own = LENGTH // num_shards
    shapes = (own, 8, dims[0]), (LENGTH, 2, dims[0]), (LENGTH, 2, dims[1])
    positions = (jax.ShapeDtypeStruct((2, length), jnp.int32) for length in (own, LENGTH))
    return jax.jit(step).trace(*(jax.ShapeDtypeStruct((2, *shape), dtype) for shape in shapes), *positions)


def kernels(**options: Any) -> list[tuple[str, str, str]]:
    """Name, mask and window of each cuDNN call in the program for CUDA."""
    text = traced(**options).lower(lowering_platforms=("cuda",)).as_text()
    names = re.findall(r"@__cudnn\$(\w+)", text)
    masks = re.findall(r"mask_type\\22: ?\\22(\w+)", text)
    return list(zip(names, masks, re.findall(r"sliding_window_length\\22: ?(\d+)", text), strict=True))


def test_a_plain_row_is_causal_for_the_kernel() -> None:
    assert kernels() == [("fmhaSoftmax", "CAUSAL", "0"), ("fmhaSoftmaxBackward", "CAUSAL", "0")]


def test_a_window_is_the_kernels_own() -> None:
    assert kernels(window=32) == [("fmhaSoftmax", "CAUSAL", "32"), ("fmhaSoftmaxBackward", "CAUSAL", "32")]


def test_segments_are_a_bias_beside_the_causal_mask() -> None:
    biased = [("fmhaScaleBiasSoftmax", "CAUSAL", "32"), ("fmhaScaleBiasSoftmaxBackward", "CAUSAL", "32")]
    assert kernels(is_packed=True, window=32) == biased


def test_a_part_of_a_row_is_a_bias_alone() -> None:
    biased = [("fmhaScaleBiasSoftmax", "NO_MASK", "0"), ("fmhaScaleBiasSoftmaxBackward", "NO_MASK", "0")]
    assert kernels(num_shards=2, window=32) == biased


def test_values_narrower_than_keys_are_filled_up() -> None:
    text = traced(dims=(64, 48)).lower(lowering_platforms=("cuda",)).as_text()
    assert "fmhaSoftmaxBackward" in text and "tensor<2x256x2x48xbf16>" in text


def test_the_output_has_its_name() -> None:
    assert f"name={OUT_NAME}" in str(traced().jaxpr)


@pytest.mark.parametrize(
    "options",
    [{"dtype": jnp.float32}, {"soft_cap": 30.0}, {"sinks": jnp.zeros(8)}, {"dims": (12, 12)}, {"dims": (192, 128)}],
    ids=["float32", "soft cap", "sinks", "head of 12", "wide head before Hopper"],
)
def test_what_cudnn_does_not_take_is_plain_products(options: dict[str, Any]) -> None:
    assert not kernels(**options)


def test_an_odd_length_is_not_taken() -> None:
    q, k = jnp.zeros((1, 7, 2, 64), jnp.bfloat16), jnp.zeros((1, 8, 2, 64), jnp.bfloat16)
    assert limitations(q, k, k, None, None) and not limitations(k, k, k, None, None)


def shape_of(length: int, dim: int = 64, dtype: Any = jnp.bfloat16, **options: Any) -> Any:
    """The output of `attention` over a row of 8 query and 2 key heads, as it is traced."""
    q, k = (jax.ShapeDtypeStruct((1, length, heads, dim), dtype) for heads in (8, 2))
    index = jnp.arange(length)[None]
    return jax.eval_shape(partial(attention, mask=Mask(index, index, num_shards=1), **options), q, k, k)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"dtype": jnp.float32}, "set model.compute_dtype=bfloat16"),
        ({"soft_cap": 30.0}, "model.attention_soft_cap=30.0"),
        ({"sinks": jnp.zeros(8)}, "model.use_sinks=true"),
        ({"dim": 192}, "heads of 192 dimensions with values of 192: it has up to 128, in steps of 8"),
        ({"length": 8193}, "an odd number of positions (8193 queries, 8193 keys): set an even seq_len"),
    ],
    ids=["float32", "soft cap", "sinks", "wide head before Hopper", "odd length"],
)
def test_plain_products_on_a_gpu_are_refused_where_the_scores_are_large(options: dict[str, Any], setting: str) -> None:
    """8 heads x 8,192 x 8,192 scores of 4 bytes are 2.1 GB a layer."""
    with pytest.raises(ConfigError) as error:
        shape_of(**({"length": 8192} | options))
    assert setting in str(error.value) and "take 2.1 GB a device; the limit is 1 GB" in str(error.value)


def test_scores_up_to_a_gigabyte_are_plain_products() -> None:
    assert 4 * 8 * 5590**2 <= LARGEST_PLAIN_SCORES < 4 * 8 * 5592**2
    assert shape_of(5590, soft_cap=30.0).shape == (1, 5590, 8, 64)
    with pytest.raises(ConfigError, match="1 rows x 8 heads x 5592 x 5592 in float32"):
        shape_of(5592, soft_cap=30.0)
    assert shape_of(65536).shape == (1, 65536, 8, 64)  # cuDNN's, of any length


def test_a_cache_is_plain_products_of_any_size() -> None:
    q, k = (jax.ShapeDtypeStruct((1, length, 8, 64), jnp.float32) for length in (64, 1_000_000))
    mask = Mask(jnp.zeros((1, 64), jnp.int32), jnp.zeros((1, 1_000_000), jnp.int32))
    assert jax.eval_shape(partial(attention, mask=mask), q, k, k).shape == (1, 64, 8, 64)


def test_the_fallback_for_a_gpu_is_right() -> None:
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(1, 8, heads, 4)), jnp.float32) for heads in (4, 2, 2))
    index = jnp.arange(8)[None]
    mask = Mask(index, index, num_shards=1)
    np.testing.assert_allclose(attention(q, k, v, mask), reference_attention(q, k, v, mask), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("is_packed", [False, True])
def test_on_a_gpu_cudnn_is_the_reference(window: int | None, is_packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, LENGTH, heads, 64)), jnp.bfloat16) for heads in (8, 2, 2))
    index = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    ids = index // 100 if is_packed else None
    mask = Mask(index, index, ids, ids, window, 1)
    exact = reference_attention(q.astype(jnp.float32), k.astype(jnp.float32), v.astype(jnp.float32), mask)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v, mask).astype(jnp.float32), exact, atol=2e-2)
