"""Gemma 2 and 3: norms before and after a branch, scaled embeddings, local and global layers.

Gemma Team 2024, "Gemma 2"; 2025, "Gemma 3 technical report" (text part). Source of names, keys and defaults:
transformers 5.24, `models/gemma2`, `models/gemma3`.
"""

from dataclasses import replace
from typing import Any

from lifecycle.model.config import LayerKind, ModelConfig
from lifecycle.weights.families.family import D_FF, HEAD_DIM, NO_BIAS, SIZES, TIED, Family, Wrapper, class_defaults
from lifecycle.weights.families.layout import Layout, locations
from lifecycle.weights.families.llama import ATTENTION, FEED_FORWARD, QK_NORM, TRUNK
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Always, Both, Fields, Key, LayerKinds, Only, Tree, local_then_global

SANDWICH = dict(
    locations(
        "model.layers.{layer}.",
        {"attention_norm.scale": "input_layernorm.weight",
         "attention_post_norm.scale": "post_attention_layernorm.weight",
         "feed_forward_norm.scale": "pre_feedforward_layernorm.weight",
         "feed_forward_post_norm.scale": "post_feedforward_layernorm.weight"},
        transposed=False,
    )
)  # fmt: skip


def _read_scale(tree: Tree) -> Fields:
    """Scores are scaled by `query_pre_attn_scalar ** -0.5`, whatever the heads' size."""
    scalar = tree.get("query_pre_attn_scalar", 256)
    is_usual = scalar == (tree.get("head_dim") or tree["hidden_size"] // tree["num_attention_heads"])
    return {"attention_scale": None if is_usual else scalar**-0.5}


def _write_scale(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.attention_scale is None else round(config.attention_scale**-2, 6)
    return {"query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar}


def _local_then_global(tree: Tree) -> list[LayerKind]:
    return local_then_global(tree.get("sliding_window_pattern") or 6)(tree)


# Older files also have `hidden_act`, "gelu", which is not used: `hidden_activation` is.
COMMON = (
    *SIZES, replace(HEAD_DIM, default=256), D_FF, TIED, *NO_BIAS, Only("hidden_activation", "gelu_pytorch_tanh", True),
    Only("use_bidirectional_attention", False), Always("activation", "gelu"), Always("norm_position", "sandwich"),
    Always("norm_offset", 1.0), Always("use_embed_scale", True), Both(_read_scale, _write_scale),
)  # fmt: skip

GEMMA2 = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    settings=(
        *COMMON, Rope(), LayerKinds(local_then_global(2)),
        Key("attention_soft_cap", "attn_logit_softcapping", default=50.0, is_nullable=True),
        Key("logits_soft_cap", "final_logit_softcapping", default=30.0, is_nullable=True),
    ),
    layout=Layout(TRUNK, SANDWICH | ATTENTION | FEED_FORWARD),
    defaults=class_defaults(256_000, 2304, 9216, 26, 8, 4, 8192, sliding_window=4096),
)  # fmt: skip
GEMMA3_TEXT = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    scorer="Gemma3TextForSequenceClassification",
    settings=(
        *COMMON, Rope(1_000_000.0, "rope_local_base_freq"), LayerKinds(_local_then_global), Always("qk_norm", "head"),
        Key("attention_soft_cap", "attn_logit_softcapping", default=None),
        Key("logits_soft_cap", "final_logit_softcapping", default=None),
    ),
    layout=Layout(TRUNK, SANDWICH | ATTENTION | QK_NORM | FEED_FORWARD),
    defaults=class_defaults(262_208, 2304, 9216, 26, 8, 4, 131_072, sliding_window=4096),
    wrapper=Wrapper(  # the larger models, which also take images
        "gemma3", "text_config", "language_model.", ("vision_tower.", "multi_modal_projector.")
    ),
)  # fmt: skip
