"""Tiny models of each architecture of llama.cpp's that we write, with every option that its metadata has."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from lifecycle.model.config import ModelConfig, MoeConfig, RopeScaling
from lifecycle.testing.families import LLAMA, random_params
from lifecycle.text.gguf_tokenizer import write_tokenizer
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.published import save_weights
from lifecycle.weights.tensor_parts import full_index

PROMPT = (37, 5, 60, 200, 41, 41, 99, 260, 7, 130)
GEMMA: dict[str, Any] = {
    "norm_position": "sandwich", "norm_offset": 1.0, "use_embed_scale": True, "activation": "gelu",
    "tie_embeddings": True, "window": 7,
}  # fmt: skip
EXPERTS = MoeConfig(num_experts=4, experts_per_token=2, d_ff=16)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=8192)
YARN = RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=64)


def _tiny(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate(LLAMA.model_dump() | {"vocab_size": 261, "num_layers": 2} | changes)


MODELS: dict[str, ModelConfig] = {
    "llama": _tiny(),
    "llama3": _tiny(rope_theta=500_000.0, rope_scaling=LLAMA3, tie_embeddings=True, attention_bias="qkvo", head_dim=32),
    "mistral": _tiny(family="mistral", rope_scaling=RopeScaling(kind="linear", factor=2.0)),
    "mixtral": _tiny(family="mixtral", d_ff=16, moe=EXPERTS),
    "smollm3": _tiny(family="smollm3", layer_pattern=("global",) * 3 + ("nope",), num_layers=4, tie_embeddings=True),
    "qwen2": _tiny(family="qwen2", attention_bias="qkv", rope_scaling=YARN),
    "qwen3": _tiny(family="qwen3", qk_norm="head", tie_embeddings=True, head_dim=12, num_kv_heads=1),
    "qwen3_moe": _tiny(family="qwen3_moe", qk_norm="head", moe=EXPERTS),
    "gemma2": _tiny(
        family="gemma2", layer_pattern=("local", "global"), attention_soft_cap=50.0, logits_soft_cap=30.0, **GEMMA
    ),
    "gemma3_text": _tiny(
        family="gemma3_text", layer_pattern=("local",) * 5 + ("global",), num_layers=6, qk_norm="head",
        local_rope_theta=10_000.0, rope_scaling=RopeScaling(kind="linear", factor=8.0), **GEMMA,
    ),
    "olmo2": _tiny(family="olmo2", norm_position="post", qk_norm="projection"),
    "gpt_oss": _tiny(
        family="gpt_oss", layer_pattern=("local", "global"), window=6, attention_bias="qkvo", use_sinks=True,
        activation="clamped", d_ff=16, moe=EXPERTS.model_copy(update={"use_bias": True}),
        rope_scaling=YARN.model_copy(update={"truncate": False}),
    ),
}  # fmt: skip


def content_hash(path: Path) -> str:
    """Over a GGUF file's metadata, but for the bundle's version in it, and its tensors."""
    file = GgufFile(path)
    metadata = {key: value for key, value in file.metadata.items() if key != "general.version"}
    digest = hashlib.sha256(json.dumps([metadata, file.shapes, file.encodings], sort_keys=True).encode())
    for name, shape in file.shapes.items():
        digest.update(file.read(name, full_index(shape)).tobytes())
    return digest.hexdigest()


def write_bundle(name: str, out: Path) -> Path:
    """A model's bundle, with the tokenizer of `tiny.gguf`. Its matrices are twice those of `random_params`, so
    that greedy tokens differ."""
    out.mkdir()
    write_tokenizer(GgufFile(Path(__file__).parent / "gguf_files/tiny.gguf").metadata, out, name)
    config = MODELS[name]
    params = random_params(config)
    larger = jax.tree.map_with_path(lambda path, leaf: leaf if path[-1].key == "scale" else 2 * leaf, params)
    save_weights(config, larger, out)
    return out
