"""Mixtral (Jiang et al. 2024): Mistral whose layers have experts.

Source of names and keys: the published checkpoints (`block_sparse_moe`, `w1 w3 w2`), which transformers 5.24 reads and
writes through `conversion_mapping.py`; of defaults: its `models/mixtral`.
"""

from typing import Any

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.family import HEAD_DIM, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout, Location, locations
from lifecycle.weights.families.llama import ATTENTION, NORMS, TRUNK
from lifecycle.weights.families.mistral import local_if_windowed
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Both, Fields, Key, LayerKinds, MissingKey, Only, Tree


def _read_sizes(tree: Tree) -> Fields:
    """There is no dense layer: one size serves both fields."""
    if "intermediate_size" not in tree:
        raise MissingKey("intermediate_size")
    return {"d_ff": tree["intermediate_size"], "moe.d_ff": tree["intermediate_size"]}


def _write_sizes(config: ModelConfig) -> dict[str, Any]:
    return {"intermediate_size": config.moe.d_ff if config.moe else config.d_ff}


SIZE_OF_EXPERTS = Both(_read_sizes, _write_sizes)
EXPERTS = dict(
    locations(
        "model.layers.{layer}.block_sparse_moe.experts.{expert}.",
        {"feed_forward.experts.gate": "w1.weight", "feed_forward.experts.up": "w3.weight",
         "feed_forward.experts.down": "w2.weight"},
        transposed=True,
    )
) | {"feed_forward.router": Location("model.layers.{layer}.block_sparse_moe.gate.weight", transposed=True)}  # fmt: skip

MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    settings=(
        *SIZES, HEAD_DIM, UNTIED, SILU, Rope(1_000_000.0), LayerKinds(local_if_windowed),
        SIZE_OF_EXPERTS, Only("router_jitter_noise", 0.0),
        Key("moe.num_experts", "num_local_experts", default=8),
        Key("moe.experts_per_token", "num_experts_per_tok", default=2),
    ),
    layout=Layout(TRUNK, NORMS | ATTENTION | EXPERTS),
    defaults=class_defaults(32_000, 4096, 14_336, 32, 32, 8, 131_072, 1e-5),
)  # fmt: skip
