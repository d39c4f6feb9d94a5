"""Drafters on disk: bit for bit, under the published names, and heads that do not fit their target."""

import json
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lifecycle.model.config import DrafterConfig, ModelConfig
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.params import Params
from lifecycle.model.stacks import DRAFTER
from lifecycle.testing.families import random_params
from lifecycle.weights.drafters import load_drafter, write_drafter
from lifecycle.weights.names import unstack
from lifecycle.weights.published import CONFIG, WEIGHTS

TARGET = ModelConfig(
    vocab_size=40, d_model=16, d_ff=24, num_layers=8, num_heads=4, num_kv_heads=2, head_dim=8, family="qwen3",
    qk_norm="head", rope_theta=5000.0, norm_eps=1e-5,
)  # fmt: skip
IDS = np.array([0, 2, 3, 17, 21, 39])


def drafter_of(drafter: DrafterConfig) -> tuple[ModelConfig, Params]:
    config = TARGET.model_copy(update={"drafter": drafter})
    held = random_params(config)[DRAFTER]
    if VOCABULARY in held:
        held[VOCABULARY]["ids"] = jnp.asarray(IDS, jnp.float32)
    return config, held


def written(folder: Path, config: ModelConfig, held: Params) -> Path:
    arrays = unstack(held)
    write_drafter(config, lambda name: np.asarray(arrays[name]), folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "drafter", *drafter_of(DrafterConfig(vocab_size=len(IDS), d_ff=20)))


@pytest.mark.parametrize(
    "drafter", [DrafterConfig(vocab_size=len(IDS), d_ff=20), DrafterConfig(), DrafterConfig(layers=(0, 3, 6))]
)
def test_what_is_written_is_read(tmp_path: Path, drafter: DrafterConfig) -> None:
    config, held = drafter_of(drafter)
    found, params = load_drafter(TARGET, written(tmp_path, config, held))
    assert found.target == TARGET and found.drafter_layers == config.drafter_layers
    assert found.drafter is not None and found.drafter.vocab_size == drafter.vocab_size
    chex.assert_trees_all_equal(params, held)


def test_the_names_are_the_published_ones(folder: Path) -> None:
    """Those that vLLM's and SGLang's `llama_eagle3.py` read."""
    tensors, tree = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    block = {
        "input_layernorm": (16,), "hidden_norm": (16,), "post_attention_layernorm": (16,), "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (16, 32),
        "mlp.gate_proj": (20, 16), "mlp.up_proj": (20, 16), "mlp.down_proj": (16, 20),
    }  # fmt: skip
    expected = {f"midlayer.{name}.weight": shape for name, shape in block.items()}
    expected |= {"fc.weight": (16, 48), "norm.weight": (16,), "lm_head.weight": (6, 16), "d2t": (6,), "t2d": (40,)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert np.array_equal(tensors["d2t"] + np.arange(6), IDS) and np.array_equal(np.flatnonzero(tensors["t2d"]), IDS)
    assert tree["architectures"] == ["LlamaForCausalLMEagle3"] and tree["model_type"] == "llama"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 40, "draft_vocab_size": 6}
    assert sizes.items() <= tree.items() and tree["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]


def test_a_head_as_others_publish_it_is_read(folder: Path) -> None:
    """Without layers, which are then the usual ones, with the target's embedding, and in bfloat16's neighbour."""
    tensors, tree = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    del tree["eagle_aux_hidden_state_layer_ids"]
    halves = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in tensors.items()}
    save_file(halves | {"embed_tokens.weight": np.zeros((40, 16), np.float16)}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(tree))
    config, params = load_drafter(TARGET, folder)
    assert config.drafter_layers == (2, 4, 5)
    assert np.array_equal(params["projection"], halves["fc.weight"].T)


def changed(folder: Path, tensors: dict[str, Any] | None = None, **keys: Any) -> None:
    held, tree = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    kept = {name: value for name, value in (held | (tensors or {})).items() if value is not None}
    save_file(kept, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(tree | keys))


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ({}, {"architectures": ["LlamaForCausalLM"]}, "expected LlamaForCausalLMEagle3"),
        ({}, {"rope_theta": 10_000.0}, r"rope_theta=10000\.0, for this model 5000\.0"),
        ({}, {"vocab_size": 41}, "vocab_size=41, for this model 40"),
        ({}, {"num_hidden_layers": 2}, "num_layers=2, for this model 1"),
        ({}, {"eagle_aux_hidden_state_layer_ids": [2, 4, 8]}, "the model has 8 layers"),
        ({}, {"eagle_aux_hidden_state_layer_ids": [4, 2, 5]}, "each above the one before"),
        ({"fc.weight": None}, {}, r"missing fc\.weight"),
        ({"fc.bias": np.zeros(16, np.float32)}, {}, r"unknown fc\.bias"),
        ({"norm.weight": np.zeros(8, np.float32)}, {}, r"norm\.weight: shape \(8,\), the config says \(16,\)"),
        ({"d2t": np.full(6, 35)}, {}, "does not give 6 different ids below vocab_size=40"),
        ({"d2t": np.array([1, 0, 0, 0, 0, 0])}, {}, "does not give 6 different ids"),
        ({"d2t": np.zeros(5, int)}, {}, r"d2t has shape \(5,\), and lm_head 6 rows"),
    ],
)
def test_a_head_that_does_not_fit_is_rejected(
    folder: Path, tensors: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    changed(folder, tensors, **keys)
    with pytest.raises(ValueError, match=message):
        load_drafter(TARGET, folder)


def test_layers_may_be_named_by_their_outputs(folder: Path) -> None:
    """As SGLang has them."""
    key = "eagle_aux_hidden_state_layer_ids"
    changed(folder, **{key: None, "eagle_config": {key: [0, 3, 6], "use_aux_hidden_state": True}})
    assert load_drafter(TARGET, folder)[0].drafter_layers == (1, 4, 7)
