"""DeepSeek V3 (DeepSeek-AI 2024): latent attention, shared and routed experts, dense first layers.

The published weights rotate neighbouring pairs of a head's positional dimensions, ours rotate halves, so those columns
are permuted on import and back on export. Layers after the last are its prediction modules (`model/mtp.py`), each with
copies of the embedding and of the head. Source of names, keys and defaults: transformers 5.24, `models/deepseek_v3`,
and the published `config.json`; of the modules' names also vLLM, `models/deepseek_mtp.py`.
"""

import re
from typing import Any

import numpy as np

from lifecycle.model.config import MlaConfig, ModelConfig
from lifecycle.weights.families.family import D_FF, NO_BIAS, NO_WINDOW, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout, Location, de_interleaved, locations
from lifecycle.weights.families.llama import FEED_FORWARD, NORMS, TRUNK
from lifecycle.weights.families.qwen import EXPERTS
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Always, Both, Fields, Key, Only, Tree


def _mla(config: ModelConfig) -> MlaConfig:
    assert config.mla is not None
    return config.mla


def _query_columns(config: ModelConfig) -> np.ndarray:
    mla = _mla(config)
    return de_interleaved(config.num_heads, config.head_dim, mla.nope_head_dim, mla.rope_head_dim)


def _latent_columns(config: ModelConfig) -> np.ndarray:
    mla = _mla(config)
    return de_interleaved(1, mla.kv_lora_rank + mla.rope_head_dim, mla.kv_lora_rank, mla.rope_head_dim)


LAYER = "model.layers.{layer}."
ATTENTION = {
    "attention.q": Location(LAYER + "self_attn.q_proj.weight", True, _query_columns),
    "attention.q_down": Location(LAYER + "self_attn.q_a_proj.weight", True),
    "attention.q_down_norm.scale": Location(LAYER + "self_attn.q_a_layernorm.weight"),
    "attention.q_up": Location(LAYER + "self_attn.q_b_proj.weight", True, _query_columns),
    "attention.kv_down": Location(LAYER + "self_attn.kv_a_proj_with_mqa.weight", True, _latent_columns),
    "attention.kv_down_norm.scale": Location(LAYER + "self_attn.kv_a_layernorm.weight"),
    "attention.kv_up": Location(LAYER + "self_attn.kv_b_proj.weight", True),
    "attention.o": Location(LAYER + "self_attn.o_proj.weight", True),
}
SHARED = {"feed_forward.selection_bias": Location(LAYER + "mlp.gate.e_score_correction_bias")} | dict(
    locations(
        LAYER + "mlp.shared_experts.",
        {"feed_forward.shared.gate": "gate_proj.weight", "feed_forward.shared.up": "up_proj.weight",
         "feed_forward.shared.down": "down_proj.weight"},
        transposed=True,
    )
)  # fmt: skip


BLOCK = NORMS | ATTENTION | FEED_FORWARD | EXPERTS | SHARED
MODULE = {
    "embed_norm.scale": Location(LAYER + "enorm.weight"),
    "hidden_norm.scale": Location(LAYER + "hnorm.weight"),
    "projection": Location(LAYER + "eh_proj.weight", True),
    "norm.scale": Location(LAYER + "shared_head.norm.weight"),
    **{f"block.{array}": location for array, location in BLOCK.items()},
}
COPIES = {LAYER + "embed_tokens.weight": "embed", LAYER + "shared_head.head.weight": "head"}


def _read_head_dim(tree: Tree) -> Fields:
    return {"head_dim": tree["qk_nope_head_dim"] + tree["qk_rope_head_dim"]}


def _nothing(config: ModelConfig) -> dict[str, Any]:
    return {}


def _is_prediction_module(config: ModelConfig, name: str) -> bool:
    """Whether a tensor belongs to a layer after the last one: of a module that this model leaves out."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return match is not None and int(match[1]) >= config.num_layers


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    settings=(
        *SIZES, D_FF, UNTIED, SILU, *NO_BIAS, Rope(), NO_WINDOW, Both(_read_head_dim, _nothing),
        Only("rope_interleave", True, True), Only("scoring_func", "sigmoid", True), Only("moe_layer_freq", 1, True),
        Only("topk_method", "noaux_tc", True),
        Key("mla.q_lora_rank", "q_lora_rank", default=1536, is_nullable=True),
        Key("mla.kv_lora_rank", "kv_lora_rank", default=512),
        Key("mla.nope_head_dim", "qk_nope_head_dim"),
        Key("mla.rope_head_dim", "qk_rope_head_dim"),
        Key("mla.v_head_dim", "v_head_dim", default=128),
        Always("moe.score", "sigmoid"),
        Always("moe.use_selection_bias", True),
        Key("moe.num_experts", "n_routed_experts"),
        Key("moe.num_shared_experts", "n_shared_experts"),
        Key("moe.experts_per_token", "num_experts_per_tok"),
        Key("moe.d_ff", "moe_intermediate_size"),
        Key("moe.first_dense_layers", "first_k_dense_replace"),
        Key("moe.num_groups", "n_group"),
        Key("moe.groups_per_token", "topk_group"),
        Key("moe.use_normalised_weights", "norm_topk_prob", default=True),
        Key("moe.routed_scale", "routed_scaling_factor"),
        Key("num_mtp_modules", "num_nextn_predict_layers", default=0),
    ),
    layout=Layout(TRUNK, BLOCK, MODULE, COPIES),
    defaults=class_defaults(
        129_280, 7168, 18_432, 61, 128, 128, 4096, moe_intermediate_size=2048, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, n_group=8, topk_group=4,
        routed_scaling_factor=2.5, qk_nope_head_dim=128, qk_rope_head_dim=64,
    ),
    ignores=_is_prediction_module,
    quantisation="fp8",
)  # fmt: skip
