"""RoPE in GGUF: `rope.freq_base` and `rope.scaling.*`; Llama 3's scaling as a tensor of each frequency's divisor.

What must hold: a scaling that would be computed otherwise is refused. Sources: ggml's `docs/gguf.md`; llama.cpp's
`conversion/base.py` and `conversion/llama.py` (`generate_extra_tensors`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lifecycle.model.config import ModelConfig, RopeScaling
from lifecycle.weights.families.settings import Fields, Tree, WeightsError

FACTORS = "rope_freqs.weight"
SCALING = "rope.scaling."
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}  # of all published models
YARN = {
    "factor": "factor", "original_max_seq_len": "original_context_length", "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """A `Setting`: our `rope_theta` and `rope_scaling`. `truncates`: whether YaRN's ramp ends at whole dimensions, of
    which a file says nothing."""

    truncates: bool = True

    def read(self, tree: Tree) -> Fields:
        """Our fields; raises `WeightsError` for a scaling that the decoder does not compute."""
        theta = tree.get("rope.freq_base", 10_000.0)
        kind = tree.get(SCALING + "type", "none")
        if FACTORS in tree:
            dim = tree.get("attention.key_length", tree["embedding_length"] // tree["attention.head_count"])
            return {"rope_theta": theta, "rope_scaling": _llama3(np.asarray(tree[FACTORS]), dim, theta)}
        if kind not in ("none", "linear", "yarn"):
            raise WeightsError(f"{SCALING}type={kind!r} is not supported; import the model from safetensors")
        names = {"none": {}, "linear": {"factor": "factor"}, "yarn": YARN}[kind]
        given = {ours: tree[SCALING + theirs] for ours, theirs in names.items() if SCALING + theirs in tree}
        if kind == "none":
            return {"rope_theta": theta, "rope_scaling": None}
        more = {"truncate": self.truncates} if kind == "yarn" else {}
        return {"rope_theta": theta, "rope_scaling": {"kind": kind, **given, **more}}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The metadata's keys, and the factors under the tensor's name."""
        keys: dict[str, Any] = {"rope.freq_base": float(config.rope_theta)}
        scaling = config.rope_scaling
        if scaling is None:
            return keys
        if scaling.kind == "llama3":
            return keys | {FACTORS: llama3_factors(config.head_dim, config.rope_theta, scaling)}
        names = YARN if scaling.kind == "yarn" else {"factor": "factor"}
        named = {SCALING + theirs: getattr(scaling, ours) for ours, theirs in names.items()}
        return keys | {SCALING + "type": scaling.kind} | named


def _llama3(factors: np.ndarray, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, recovered from its factors."""
    factor = float(str(np.float32(factors.max())))
    scaling = RopeScaling(kind="llama3", factor=factor, **LLAMA3)
    expected = llama3_factors(head_dim, theta, scaling)
    if factors.shape != (head_dim // 2,) or not np.allclose(factors, expected, rtol=1e-4):
        known = ", ".join(f"{key}={value}" for key, value in LLAMA3.items())
        raise WeightsError(f"{FACTORS} is not Llama 3's scaling, of {known}; keep the model in safetensors")
    return scaling.model_dump()


def llama3_factors(head_dim: int, theta: float, scaling: RopeScaling) -> Sequence[float]:
    """The divisor of each frequency: 1, `factor`, or a ramp between them, by wavelength."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((scaling.original_max_seq_len / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).tolist()
