"""Weights in and out: bit-equal round trips, transformers' logits reproduced, and every misfit refused by name."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward, init_params, logits
from lifecycle.model.weights import (
    CONFIG,
    WEIGHTS,
    WeightsError,
    config_from_hf,
    config_to_hf,
    load_config,
    load_weights,
    save_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden"
WHOLE_MODEL = 1e-4  # float32, a whole model
PARITY_PYTHON = os.environ.get("LIFECYCLE_PARITY_PYTHON")

LLAMA = ModelConfig(
    vocab_size=96, d_model=32, d_ff=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, max_seq_len=64,
    rope_theta=300_000.0, norm_eps=1e-5,
)  # fmt: skip
QWEN3 = LLAMA.model_copy(update={"use_qk_norm": True, "tie_embeddings": True, "head_dim": 12, "num_kv_heads": 1})


@pytest.fixture(scope="module", params=[LLAMA, QWEN3], ids=["llama", "qwen3"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture(scope="module")
def params(config: ModelConfig) -> dict[str, Any]:
    fresh = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), fresh)


@pytest.fixture
def saved(config: ModelConfig, params: dict[str, Any], tmp_path: Path) -> Path:
    save_weights(config, params, tmp_path, bos_token_id=1)
    return tmp_path


def float32_logits(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    config = config.model_copy(update={"compute_dtype": "float32"})
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    run = jax.jit(lambda p: logits(config, p, forward(config, p, jnp.asarray(tokens), positions)))
    return np.asarray(run(params))


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_transformers_logits_are_reproduced(family: str) -> None:
    config = load_config(GOLDEN / family)
    expected = np.load(GOLDEN / family / "expected.npz")
    found = float32_logits(config, load_weights(config, GOLDEN / family), expected["tokens"])
    np.testing.assert_allclose(found, expected["logits"], atol=WHOLE_MODEL, rtol=0)
    assert np.abs(expected["logits"]).max() > 3  # logits of a size at which the tolerance says something


@pytest.mark.parity
@pytest.mark.skipif(PARITY_PYTHON is None, reason="LIFECYCLE_PARITY_PYTHON names no Python with torch and transformers")
def test_transformers_opens_what_is_exported(config: ModelConfig, params: dict[str, Any], saved: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 24))
    np.save(saved / "tokens.npy", tokens)
    script = [str(PARITY_PYTHON), str(GOLDEN / "open_bundle.py"), str(saved)]
    subprocess.run([*script, str(saved / "tokens.npy"), str(saved / "logits.npy")], check=True)
    found = float32_logits(config, params, tokens)
    np.testing.assert_allclose(found, np.load(saved / "logits.npy"), atol=WHOLE_MODEL, rtol=0)


def test_what_is_saved_is_loaded_bit_by_bit(config: ModelConfig, params: dict[str, Any], saved: Path) -> None:
    assert load_config(saved) == config
    loaded = load_weights(config, saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for left, right in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert left.dtype == right.dtype and np.array_equal(left, right)


def test_the_same_weights_give_the_same_bytes(config: ModelConfig, params: dict[str, Any], saved: Path) -> None:
    first = [(saved / name).read_bytes() for name in (WEIGHTS, CONFIG)]
    save_weights(config, params, saved, bos_token_id=1)
    assert [(saved / name).read_bytes() for name in (WEIGHTS, CONFIG)] == first


def test_names_and_shapes_are_the_published_ones(config: ModelConfig, saved: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in load_file(saved / WEIGHTS).items()}
    assert shapes["model.layers.2.self_attn.k_proj.weight"] == (config.num_kv_heads * config.head_dim, 32)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (32, 48)
    assert ("lm_head.weight" in shapes) != config.tie_embeddings
    assert ("model.layers.1.self_attn.q_norm.weight" in shapes) == config.use_qk_norm
    assert json.loads((saved / CONFIG).read_text())["bos_token_id"] == 1


def test_bfloat16_weights_are_read_as_float32(config: ModelConfig, params: dict[str, Any], saved: Path) -> None:
    rewrite(saved, lambda t: t.update({name: x.astype(ml_dtypes.bfloat16) for name, x in t.items()}))
    expected = np.asarray(params["embed"]).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(load_weights(config, saved)["embed"], expected)


def test_every_misfit_of_the_weights_is_listed_at_once(config: ModelConfig, saved: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.1.self_attn.q_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((3, 4), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)

    rewrite(saved, spoil)
    with pytest.raises(WeightsError) as caught:
        load_weights(config, saved)
    text = str(caught.value)
    assert "missing model.layers.1.self_attn.q_proj.weight" in text
    assert "model.layers.2.mlp.up_proj.weight: shape (4, 3), the config says (32, 48)" in text
    assert "unknown model.layers.3.mlp.up_proj.weight" in text and text.count("\n") == 3


def test_missing_and_cut_files_are_named(config: ModelConfig, saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    for kept in (len(whole) - 1, 100, 3):
        (saved / WEIGHTS).write_bytes(whole[:kept])
        with pytest.raises(WeightsError, match=r"model\.safetensors: not a whole safetensors file .* copy it again"):
            load_weights(config, saved)
    (saved / WEIGHTS).unlink()
    (saved / CONFIG).unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors here"):
        load_weights(config, saved)
    with pytest.raises(WeightsError, match=r"no config\.json here; is it a bundle\?"):
        load_config(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is not one of llama, qwen3"),
        ({"attention_bias": True}, r"attention_bias=True; this decoder computes attention_bias=False only"),
        ({"mlp_bias": True}, r"mlp_bias=True; this decoder computes mlp_bias=False only"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu'; this decoder computes hidden_act='silu' only"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling=.*linear.*; this decoder computes rope_scaling=None"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"rope_type='llama3'; this decoder computes .*'default' only"),
        ({"use_sliding_window": True}, r"use_sliding_window=True"),
    ],
)
def test_what_this_decoder_does_not_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        config_from_hf(config_to_hf(LLAMA) | change)


def test_missing_keys_are_named_and_customary_defaults_filled_in() -> None:
    tree = config_to_hf(LLAMA)
    for key in ("head_dim", "tie_word_embeddings", "rope_theta"):
        del tree[key]
    assert config_from_hf(tree | {"rope_parameters": {"rope_theta": 300_000.0}}) == LLAMA
    assert config_from_hf(tree | {"rope_theta": 300_000.0, "head_dim": None, "rope_parameters": None}) == LLAMA
    del tree["hidden_size"]
    with pytest.raises(WeightsError, match=r"config\.json: missing hidden_size, head_dim, rope_theta"):
        config_from_hf(tree)
