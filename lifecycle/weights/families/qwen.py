"""Qwen 2 and 2.5 (biased queries, keys and values), Qwen 3 (normalised queries and keys) and its mixtures of experts.

Yang et al. 2024, "Qwen2.5 technical report"; Yang et al. 2025, "Qwen3 technical report". Source of names, keys and
defaults: transformers 5.24, `models/qwen2`, `models/qwen3`, `models/qwen3_moe`.
"""

from dataclasses import replace
from typing import Any

from lifecycle.model.config import LayerKind, ModelConfig
from lifecycle.weights.families.family import D_FF, HEAD_DIM, NO_WINDOW, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout, Location, locations
from lifecycle.weights.families.llama import ALL_BIASED, ATTENTION, BIASES, FEED_FORWARD, NORMS, QK_NORM, TRUNK
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import (
    Always,
    Both,
    Fields,
    Key,
    LayerKinds,
    Only,
    Tree,
    WeightsError,
    all_global,
)


def _window_above(tree: Tree) -> list[LayerKind]:
    """Without `layer_types`: the layers from `max_window_layers` on are local, if windows are used at all."""
    layers = tree["num_hidden_layers"]
    if not tree.get("use_sliding_window") or not tree.get("sliding_window", 4096):
        return all_global(tree)
    return ["local" if layer >= tree.get("max_window_layers", 28) else "global" for layer in range(layers)]


def _use_window(config: ModelConfig) -> dict[str, Any]:
    return {"use_sliding_window": config.window is not None}


WINDOW = (LayerKinds(_window_above), Both(lambda tree: {}, _use_window))

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    settings=(*SIZES, HEAD_DIM, D_FF, UNTIED, SILU, Always("attention_bias", "qkv"), Rope(), *WINDOW),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | FEED_FORWARD),
    defaults=class_defaults(151_936, 4096, 22_016, 32, 32, 32, 32_768, sliding_window=4096),
)
QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    settings=(
        *SIZES, replace(HEAD_DIM, default=128), D_FF, UNTIED, SILU, ALL_BIASED, Always("qk_norm", "head"), Rope(),
        *WINDOW,
    ),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | QK_NORM | FEED_FORWARD),
    defaults=class_defaults(151_936, 4096, 22_016, 32, 32, 32, 32_768, sliding_window=4096),
)  # fmt: skip


def _read_dense_layers(tree: Tree) -> Fields:
    dense = sorted(tree.get("mlp_only_layers") or [])
    if dense != list(range(len(dense))):
        raise WeightsError(f"config.json: mlp_only_layers={dense}; only leading layers may be dense")
    return {"moe.first_dense_layers": len(dense)}


def _write_dense_layers(config: ModelConfig) -> dict[str, Any]:
    return {"mlp_only_layers": list(range(config.moe.first_dense_layers if config.moe else 0))}


EXPERTS = dict(
    locations(
        "model.layers.{layer}.mlp.experts.{expert}.",
        {"feed_forward.experts.gate": "gate_proj.weight", "feed_forward.experts.up": "up_proj.weight",
         "feed_forward.experts.down": "down_proj.weight"},
        transposed=True,
    )
) | {"feed_forward.router": Location("model.layers.{layer}.mlp.gate.weight", transposed=True)}  # fmt: skip

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    settings=(
        *SIZES, HEAD_DIM, D_FF, UNTIED, SILU, ALL_BIASED, Always("qk_norm", "head"), Rope(), NO_WINDOW,
        Only("use_sliding_window", False, True), Only("decoder_sparse_step", 1, True),
        Both(_read_dense_layers, _write_dense_layers),
        Key("moe.num_experts", "num_experts", default=lambda tree: tree.get("num_local_experts", 128)),
        Key("moe.experts_per_token", "num_experts_per_tok", default=8),
        Key("moe.d_ff", "moe_intermediate_size"),
        Key("moe.use_normalised_weights", "norm_topk_prob", default=False),
    ),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | QK_NORM | FEED_FORWARD | EXPERTS),
    defaults=class_defaults(151_936, 2048, 6144, 24, 32, 4, 32_768, moe_intermediate_size=768),
)  # fmt: skip
