"""Llama 2 and 3, and SmolLM2 (Touvron et al. 2023; Grattafiori et al. 2024). Most families' tables extend this one.

Source of names, keys and defaults: transformers 5.24, `models/llama`.
"""

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.family import (
    D_FF,
    HEAD_DIM,
    NO_WINDOW,
    SILU,
    SIZES,
    UNTIED,
    Family,
    class_defaults,
    ignore,
)
from lifecycle.weights.families.layout import Layout, Location, locations
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Both, Fields, Only, Tree

TRUNK = {
    "embed": Location("model.embed_tokens.weight"),
    "norm.scale": Location("model.norm.weight"),
    "head": Location("lm_head.weight"),
}
ATTENTION = dict(
    locations(
        "model.layers.{layer}.self_attn.",
        {"attention.q": "q_proj.weight", "attention.k": "k_proj.weight", "attention.v": "v_proj.weight",
         "attention.o": "o_proj.weight"},
        transposed=True,
    )
)  # fmt: skip
BIASES = dict(
    locations(
        "model.layers.{layer}.self_attn.",
        {"attention.q_bias": "q_proj.bias", "attention.k_bias": "k_proj.bias", "attention.v_bias": "v_proj.bias",
         "attention.o_bias": "o_proj.bias"},
        transposed=False,
    )
)  # fmt: skip
QK_NORM = dict(
    locations(
        "model.layers.{layer}.self_attn.",
        {"attention.q_norm.scale": "q_norm.weight", "attention.k_norm.scale": "k_norm.weight"},
        transposed=False,
    )
)
FEED_FORWARD = dict(
    locations(
        "model.layers.{layer}.mlp.",
        {"feed_forward.gate": "gate_proj.weight", "feed_forward.up": "up_proj.weight",
         "feed_forward.down": "down_proj.weight"},
        transposed=True,
    )
)  # fmt: skip
NORMS = dict(
    locations(
        "model.layers.{layer}.",
        {
            "attention_norm.scale": "input_layernorm.weight",
            "feed_forward_norm.scale": "post_attention_layernorm.weight",
        },
        transposed=False,
    )
)


def _read_bias(tree: Tree) -> Fields:
    return {"attention_bias": "qkvo" if tree.get("attention_bias") else "none"}


def _write_bias(config: ModelConfig) -> dict[str, bool]:
    return {"attention_bias": config.attention_bias == "qkvo"}


ALL_BIASED = Both(_read_bias, _write_bias)
BUFFERS = ignore(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # in files of old versions

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    settings=(*SIZES, HEAD_DIM, D_FF, UNTIED, SILU, ALL_BIASED, Only("mlp_bias", False, True), Rope(), NO_WINDOW),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | FEED_FORWARD),
    defaults=class_defaults(32_000, 4096, 11_008, 32, 32, None, 2048),
    ignores=BUFFERS,
)
