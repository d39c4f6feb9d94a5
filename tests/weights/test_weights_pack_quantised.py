"""Int4 bundles: GPTQ against rounding to nearest, and what is read back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.kernels.group_scaled import group_scaled
from lifecycle.model.calibration import calibrated
from lifecycle.model.weight_formats import in_format
from lifecycle.testing.families import MODELS, random_params
from lifecycle.weights.gptq import gptq
from lifecycle.weights.names import unstack
from lifecycle.weights.pack_quantised import packed_words, write_pack_quantised
from lifecycle.weights.published import load_config, load_weights

grouped = jax.jit(group_scaled, static_argnums=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-12, 1.0, 1e12]))
def test_a_weight_on_the_grid_keeps_its_values(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    top = rng.integers(1, 9, (3, 1, 8))
    values = np.clip(rng.integers(-8, 8, (3, 32, 8)), -top, np.minimum(top, 7))
    scale = np.asarray(jnp.asarray(rng.normal(size=(3, 1, 8)) * size, jnp.bfloat16).astype(jnp.float32))
    weight = (values * scale).reshape(96, 8).astype(np.float32)
    np.testing.assert_array_equal(grouped(jnp.asarray(weight), 4).dense(jnp.float32), weight)


def test_gptq_leaves_less_error_of_outputs_than_rounding_to_nearest() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(512, 96)) @ rng.normal(size=(96, 96)) * rng.lognormal(size=96)).astype(np.float32)
    weight = rng.normal(size=(96, 40)).astype(np.float32)
    rounded = gptq(weight, x.T @ x)
    nearest = np.asarray(grouped(jnp.asarray(weight), 4).dense(jnp.float32))
    error, of_nearest = (np.square(x @ (known - weight)).sum() for known in (rounded, nearest))
    assert error < 0.5 * of_nearest
    np.testing.assert_array_equal(grouped(jnp.asarray(rounded), 4).dense(jnp.float32), rounded)


def test_inputs_that_are_never_there_and_such_that_are_not_finite() -> None:
    weight = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)
    assert np.isfinite(gptq(weight, np.zeros((64, 64), np.float32))).all()
    with pytest.raises(ValueError, match="not finite"):
        gptq(weight, np.full((64, 64), np.nan, np.float32))


def test_words_hold_eight_integers_the_first_in_the_lowest_bits() -> None:
    assert packed_words(np.array([[-8, -7, 0, 0, 0, 0, 0, 7]], np.int8)).view(np.uint32).tolist() == [[0xF8888810]]


@pytest.mark.parametrize(
    "name", [pytest.param("llama3", marks=pytest.mark.slow), pytest.param("qwen3_moe", marks=pytest.mark.long)]
)
def test_a_calibrated_bundle_is_read_and_served_with_its_values(name: str, tmp_path: Path) -> None:
    config = MODELS[name].model_copy(update={"d_ff": 64})
    params = random_params(config)
    rows = jnp.asarray(np.random.default_rng(2).integers(0, config.vocab_size, (6, 20)))
    new = calibrated(config, params, rows, gptq, Silent())
    write_pack_quantised(config, new, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    assert load_config(tmp_path) == config
    read = load_weights(config, tmp_path)
    flat, before, after = unstack(new), unstack(params), unstack(read)
    seen = [array for array in flat if array.endswith((".q", ".down")) and flat[array].ndim == 2]
    assert seen
    for array in seen:
        assert not np.array_equal(flat[array], before[array])
        np.testing.assert_array_equal(after[array], flat[array])
    served = in_format(config, read, "int4")
    for stack, layer in served["blocks"].items():
        np.testing.assert_array_equal(
            layer["attention"]["q"].dense(jnp.float32), read["blocks"][stack]["attention"]["q"]
        )
