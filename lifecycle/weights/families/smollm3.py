"""SmolLM3: Llama with some layers without RoPE (Yang et al. 2025, "RoPE to NoPE and back again").

Source of names, keys and defaults: transformers 5.24, `models/smollm3`.
"""

from typing import Any

from lifecycle.model.config import LayerKind, ModelConfig
from lifecycle.weights.families.family import D_FF, HEAD_DIM, SILU, SIZES, TIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout
from lifecycle.weights.families.llama import ALL_BIASED, ATTENTION, BIASES, FEED_FORWARD, NORMS, TRUNK
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Both, Fields, Only, Tree, WeightsError, shortest_pattern


def _read_kinds(tree: Tree) -> Fields:
    layers = tree["num_hidden_layers"]
    interval = tree.get("no_rope_layer_interval", 4)
    has_rope = tree.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    if len(has_rope) < layers:
        raise WeightsError(f"config.json: no_rope_layers has {len(has_rope)} entries, num_hidden_layers={layers}")
    kinds: list[LayerKind] = ["global" if rope else "nope" for rope in has_rope[:layers]]
    return {"layer_pattern": shortest_pattern(kinds)}


def _write_kinds(config: ModelConfig) -> dict[str, Any]:
    return {"no_rope_layers": [int(config.kind(layer) != "nope") for layer in range(config.num_layers)]}


SMOLLM3 = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    settings=(
        *SIZES, HEAD_DIM, D_FF, TIED, SILU, ALL_BIASED, Only("mlp_bias", False, True),
        Only("use_sliding_window", False, True), Rope(default_theta=2_000_000.0), Both(_read_kinds, _write_kinds),
    ),
    layout=Layout(TRUNK, NORMS | ATTENTION | BIASES | FEED_FORWARD),
    defaults=class_defaults(128_256, 2048, 11_008, 36, 16, 4, 32_768),
)  # fmt: skip
