"""Mistral (Jiang et al. 2023): Llama whose layers may all be local.

Source of names, keys and defaults: transformers 5.24, `models/mistral`.
"""

from lifecycle.model.config import LayerKind
from lifecycle.weights.families.family import D_FF, HEAD_DIM, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout
from lifecycle.weights.families.llama import ATTENTION, BUFFERS, FEED_FORWARD, NORMS, TRUNK
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import LayerKinds, Tree


def local_if_windowed(tree: Tree) -> list[LayerKind]:
    """All layers are local if the config has a sliding window, else global."""
    return ["local" if tree.get("sliding_window") else "global"] * tree["num_hidden_layers"]


MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    settings=(*SIZES, HEAD_DIM, D_FF, UNTIED, SILU, Rope(), LayerKinds(local_if_windowed)),
    layout=Layout(TRUNK, NORMS | ATTENTION | FEED_FORWARD),
    defaults=class_defaults(32_000, 4096, 14_336, 32, 32, 8, 131_072, sliding_window=4096),
    ignores=BUFFERS,
)
