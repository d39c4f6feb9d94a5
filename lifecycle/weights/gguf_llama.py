"""Llama in GGUF: its config from the metadata, and its tensors' locations.

llama.cpp rotates neighbouring pairs of a head's dimensions, so its converter permutes the columns of queries and keys;
here they are permuted back. What must hold: a setting that the decoder does not support is rejected. Source: ggml's
`docs/gguf.md`; llama.cpp's `convert_hf_to_gguf.py` (`LlamaModel.permute`).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lifecycle.core.config import validate
from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.family import Family
from lifecycle.weights.families.layout import Layout, Location, de_interleaved
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.gguf import GgufFile

ARCHITECTURE = "llama"
EMBED = "token_embd.weight"
FACTORS = "rope_freqs.weight"  # Llama 3's scaling, as a divisor of each frequency
REQUIRED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length",
            "attention.layer_norm_rms_epsilon")  # fmt: skip
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}  # of all published models


def _queries(config: ModelConfig) -> np.ndarray:
    return de_interleaved(config.num_heads, config.head_dim, 0, config.head_dim)


def _keys(config: ModelConfig) -> np.ndarray:
    return de_interleaved(config.num_kv_heads, config.head_dim, 0, config.head_dim)


BLOCK = "blk.{layer}."
GGUF_LLAMA = Family(
    name="llama",
    architecture=ARCHITECTURE,
    settings=(),  # its config is metadata, not a config.json: `config_of`
    layout=Layout(
        {
            "embed": Location(EMBED),
            "norm.scale": Location("output_norm.weight"),
            "head": Location("output.weight"),
        },
        {
            "attention_norm.scale": Location(BLOCK + "attn_norm.weight"),
            "attention.q": Location(BLOCK + "attn_q.weight", True, _queries),
            "attention.k": Location(BLOCK + "attn_k.weight", True, _keys),
            "attention.v": Location(BLOCK + "attn_v.weight", True),
            "attention.o": Location(BLOCK + "attn_output.weight", True),
            "feed_forward_norm.scale": Location(BLOCK + "ffn_norm.weight"),
            "feed_forward.gate": Location(BLOCK + "ffn_gate.weight", True),
            "feed_forward.up": Location(BLOCK + "ffn_up.weight", True),
            "feed_forward.down": Location(BLOCK + "ffn_down.weight", True),
        },
    ),
    ignores=lambda config, name: name == FACTORS,
)


def config_of(file: GgufFile) -> ModelConfig:
    """The model in a file; raises `WeightsError` for another architecture or an unsupported setting."""
    architecture = file.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise WeightsError(
            f"{file.path}: architecture {architecture!r}; only {ARCHITECTURE!r} is supported in GGUF: import the model "
            "from safetensors"
        )
    own = {key.removeprefix("llama."): value for key, value in file.metadata.items() if key.startswith("llama.")}
    _require_numbers(file, own)
    heads = own["attention.head_count"]
    head_dim = own.get("attention.key_length", own["embedding_length"] // heads)
    _require_computed(file, own, head_dim)
    theta = _short(own.get("rope.freq_base", 10_000.0))
    fields = {
        "family": "llama",
        "vocab_size": file.shapes[EMBED][0] if EMBED in file.shapes else own["vocab_size"],
        "d_model": own["embedding_length"],
        "d_ff": own["feed_forward_length"],
        "num_layers": own["block_count"],
        "num_heads": heads,
        "num_kv_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_seq_len": own["context_length"],
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, head_dim, theta),
        "norm_eps": _short(own["attention.layer_norm_rms_epsilon"]),
        "tie_embeddings": "output.weight" not in file.shapes,
    }
    return validate(ModelConfig, fields, where=str(file.path))


def _require_numbers(file: GgufFile, own: Mapping[str, Any]) -> None:
    """Checks that the config's settings are present, each one number (some models have one per layer)."""
    required = [*REQUIRED, *([] if EMBED in file.shapes else ["vocab_size"])]
    if missing := [f"llama.{key}" for key in required if key not in own]:
        raise WeightsError(f"{file.path}: its metadata lacks {', '.join(missing)}; import the model from safetensors")
    given = {key: own[key] for key in (*required, *OPTIONAL) if key in own}
    wrong = [f"llama.{key}={value!r}" for key, value in given.items() if type(value) not in (int, float) or value <= 0]
    if wrong:
        raise WeightsError(
            f"{file.path}: {', '.join(wrong)}: expected one positive number; import the model from safetensors"
        )


def _require_computed(file: GgufFile, own: Mapping[str, Any], head_dim: int) -> None:
    computed = {
        "expert_count": 0, "rope.dimension_count": head_dim, "attention.value_length": head_dim,
        "rope.scaling.type": "none", "attention.sliding_window": 0,
    }  # fmt: skip
    wrong = [f"llama.{key}={own[key]!r}" for key, value in computed.items() if own.get(key, value) != value]
    if wrong:
        raise WeightsError(f"{file.path}: {', '.join(wrong)} is not supported; import the model from safetensors")


def _short(value: float) -> float:
    """The shortest decimal that is this float32: the metadata has single precision, configs are written in decimals."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, head_dim: int, theta: float) -> dict[str, Any] | None:
    """Llama 3's scaling, recovered from its factors; None for a file without any."""
    if FACTORS not in file.shapes:
        return None
    factors = file.read(FACTORS, (slice(0, head_dim // 2),))
    factor = _short(float(factors.max()))
    if not np.allclose(factors, _llama3_factors(head_dim, theta, factor), rtol=1e-4):
        raise WeightsError(f"{file.path}: {FACTORS} is not Llama 3's scaling; import the model from safetensors")
    return {"kind": "llama3", "factor": factor, **LLAMA3}


def _llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """Llama 3's divisor of each frequency: 1, `factor`, or a ramp between them, by wavelength."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((LLAMA3["original_max_seq_len"] / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
