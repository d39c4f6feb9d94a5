"""Weights and config in the layout that other tools open: safetensors with per-layer names and `config.json`.

A family is a table of names and a few config keys. What must hold: what `save_weights` writes, `load_weights` reads
back bit-equal, and a file that does not fit is refused whole, every missing, unknown or misshapen tensor named.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lifecycle.core.artifact import write_text
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, abstract_params

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

# canonical name -> (published name, stored transposed there: products are [out, in])
TRUNK_NAMES = {
    "embed": ("model.embed_tokens.weight", False),
    "norm.scale": ("model.norm.weight", False),
    "head": ("lm_head.weight", False),
}
LAYER_NAMES = {
    "attention_norm.scale": ("input_layernorm.weight", False),
    "attention.q": ("self_attn.q_proj.weight", True),
    "attention.k": ("self_attn.k_proj.weight", True),
    "attention.v": ("self_attn.v_proj.weight", True),
    "attention.o": ("self_attn.o_proj.weight", True),
    "attention.q_norm.scale": ("self_attn.q_norm.weight", False),
    "attention.k_norm.scale": ("self_attn.k_norm.weight", False),
    "feed_forward_norm.scale": ("post_attention_layernorm.weight", False),
    "feed_forward.gate": ("mlp.gate_proj.weight", True),
    "feed_forward.up": ("mlp.up_proj.weight", True),
    "feed_forward.down": ("mlp.down_proj.weight", True),
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}  # without and with normalised q and k
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
# what a published config may also say, and the one value of it that this decoder computes
COMPUTED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rope_scaling": None,
    "rope_type": "default",
    "use_sliding_window": False,
}


class WeightsError(ValueError):
    """Weights or a config that do not fit; the message lists what is wrong."""


def config_to_hf(config: ModelConfig, **token_ids: int) -> dict[str, Any]:
    """The published form of a config; `token_ids` are `bos_token_id`, `eos_token_id`, `pad_token_id`."""
    family = "qwen3" if config.use_qk_norm else "llama"
    fields = {published: getattr(config, ours) for ours, published in CONFIG_KEYS.items()}
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **fields,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.d_model**-0.5,
        "use_cache": True,
        "torch_dtype": "float32",
        **token_ids,
    }


def config_from_hf(tree: dict[str, Any]) -> ModelConfig:
    """Reads a published config; refuses families and settings that this decoder does not compute."""
    family = tree.get("model_type")
    if family not in ARCHITECTURES:
        raise WeightsError(f"config.json: model_type {family!r} is not one of {', '.join(ARCHITECTURES)}")
    rope = tree.get("rope_parameters") or {}  # newer files nest what older ones have at the top
    defaults = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    tree = defaults | {"tie_word_embeddings": False} | tree | {"rope_type": rope.get("rope_type", "default")}
    for key, computed in COMPUTED.items():
        if tree.get(key, computed) != computed:
            raise WeightsError(f"config.json: {key}={tree[key]!r}; this decoder computes {key}={computed!r} only")
    if tree.get("head_dim") is None and "hidden_size" in tree and "num_attention_heads" in tree:
        tree["head_dim"] = tree["hidden_size"] // tree["num_attention_heads"]
    missing = [key for key in CONFIG_KEYS.values() if key not in tree]
    if missing:
        raise WeightsError(f"config.json: missing {', '.join(missing)}")
    fields = {ours: tree[published] for ours, published in CONFIG_KEYS.items()}
    return ModelConfig(**fields, use_qk_norm=family == "qwen3")


def tensor_names(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...], int | None, bool]]:
    """(published name, path in the parameter tree, layer, is stored transposed) of every tensor of the model."""
    for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        keys = tuple(entry.key for entry in path)
        if keys[0] != "blocks":
            published, transposed = TRUNK_NAMES[".".join(keys)]
            yield published, keys, None, transposed
            continue
        published, transposed = LAYER_NAMES[".".join(keys[1:])]
        for layer in range(config.num_layers):
            yield f"model.layers.{layer}.{published}", keys, layer, transposed


def _leaf(params: Params, keys: tuple[str, ...]) -> Any:
    for key in keys:
        params = params[key]
    return params


def save_weights(config: ModelConfig, params: Params, folder: Path, **token_ids: int) -> None:
    """Writes `model.safetensors` and `config.json`; the same parameters give the same bytes."""
    tensors: dict[str, np.ndarray] = {}
    for published, keys, layer, transposed in tensor_names(config):
        leaf = _leaf(params, keys)
        array = np.asarray(jax.device_get(leaf if layer is None else leaf[layer]))
        tensors[published] = np.ascontiguousarray(array.T if transposed else array)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config_to_hf(config, **token_ids), indent=2) + "\n")


def load_config(folder: Path) -> ModelConfig:
    """The config of a bundle's folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(f"{folder}: no {CONFIG} here; is it a bundle?")
    return config_from_hf(json.loads(path.read_text(encoding="utf-8")))


def load_weights(config: ModelConfig, folder: Path) -> Params:
    """Reads `model.safetensors` as parameters in float32; raises `WeightsError` listing all that does not fit."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise WeightsError(f"{folder}: no {WEIGHTS} here")
    try:
        with safe_open(path, framework="np") as file:
            return _read(config, file, path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); export or copy it again") from None


def _read(config: ModelConfig, file: Any, path: Path) -> Params:
    shapes = abstract_params(config)
    present = set(file.keys())
    wrong: list[str] = []
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for published, keys, layer, transposed in tensor_names(config):
        if published not in present:
            wrong.append(f"missing {published}")
            continue
        present.discard(published)
        array = file.get_tensor(published)
        array = array.T if transposed else array
        expected = _leaf(shapes, keys).shape[0 if layer is None else 1 :]
        if array.shape != expected:
            wrong.append(f"{published}: shape {array.shape}, the config says {expected}")
        stacks.setdefault(keys, []).append(array.astype(np.float32))
    wrong += [f"unknown {name}" for name in sorted(present)]
    if wrong:
        raise WeightsError(f"{path} does not fit its config:\n" + "\n".join(f"  {line}" for line in wrong))
    return _tree({keys: np.stack(v) if keys[0] == "blocks" else v[0] for keys, v in stacks.items()})


def _tree(leaves: dict[tuple[str, ...], np.ndarray]) -> Params:
    tree: Params = {}
    for keys, array in leaves.items():
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = jnp.asarray(array)
    return tree
