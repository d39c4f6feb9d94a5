"""gpt-oss (OpenAI 2025): attention sinks, alternating windows, biased experts with a clamped gate.

An expert's gate and up columns alternate in one tensor, `[E, D, 2 Fe]`. Source of names, keys and defaults:
transformers 5.24, `models/gpt_oss`; the released files have the experts in MXFP4 blocks (`weights/block_scaled.py`).
"""

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.family import HEAD_DIM, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout, Location, every
from lifecycle.weights.families.llama import ATTENTION, BIASES, NORMS, TRUNK
from lifecycle.weights.families.mixtral import SIZE_OF_EXPERTS
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Always, Key, LayerKinds, Only, local_then_global


def _expert_size(config: ModelConfig) -> int:
    assert config.moe is not None
    return config.moe.d_ff


GATE, UP = every(2, 0, _expert_size), every(2, 1, _expert_size)
MLP = "model.layers.{layer}.mlp."
EXPERTS = {
    "attention.sinks": Location("model.layers.{layer}.self_attn.sinks"),
    "feed_forward.router": Location(MLP + "router.weight", transposed=True),
    "feed_forward.router_bias": Location(MLP + "router.bias"),
    "feed_forward.experts.gate": Location(MLP + "experts.gate_up_proj", columns=GATE),
    "feed_forward.experts.up": Location(MLP + "experts.gate_up_proj", columns=UP),
    "feed_forward.experts.gate_bias": Location(MLP + "experts.gate_up_proj_bias", columns=GATE),
    "feed_forward.experts.up_bias": Location(MLP + "experts.gate_up_proj_bias", columns=UP),
    "feed_forward.experts.down": Location(MLP + "experts.down_proj"),
    "feed_forward.experts.down_bias": Location(MLP + "experts.down_proj_bias"),
}
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}  # fmt: skip

GPT_OSS = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    settings=(
        *SIZES, HEAD_DIM, UNTIED, SILU, Only("attention_bias", True, True), Rope(150_000.0, default_scaling=YARN),
        LayerKinds(local_then_global(2)), SIZE_OF_EXPERTS, Only("swiglu_limit", 7.0, True), Only("swiglu_alpha", 1.702),
        Always("attention_bias", "qkvo"), Always("use_sinks", True), Always("activation", "clamped"),
        Always("moe.use_bias", True),
        Key("moe.num_experts", "num_local_experts", default=lambda tree: tree.get("num_experts", 128)),
        Key("moe.experts_per_token", "num_experts_per_tok", default=lambda tree: tree.get("experts_per_token", 4)),
    ),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | EXPERTS),
    defaults=class_defaults(201_088, 2880, 2880, 36, 64, 8, 131_072, 1e-5, head_dim=64, sliding_window=128),
    quantisation="mxfp4",
)  # fmt: skip
