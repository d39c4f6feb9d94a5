"""OLMo 2 (OLMo Team 2025): norms after a branch, inside the sum, and queries and keys normalised over all heads.

Source of names, keys and defaults: transformers 5.24, `models/olmo2`.
"""

from lifecycle.weights.families.family import D_FF, HEAD_DIM, NO_WINDOW, SILU, SIZES, UNTIED, Family, class_defaults
from lifecycle.weights.families.layout import Layout, locations
from lifecycle.weights.families.llama import ALL_BIASED, ATTENTION, BIASES, FEED_FORWARD, QK_NORM, TRUNK
from lifecycle.weights.families.rope import Rope
from lifecycle.weights.families.settings import Always

POST_NORMS = dict(
    locations(
        "model.layers.{layer}.",
        {"attention_post_norm.scale": "post_attention_layernorm.weight",
         "feed_forward_post_norm.scale": "post_feedforward_layernorm.weight"},
        transposed=False,
    )
)  # fmt: skip

OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    settings=(
        *SIZES, HEAD_DIM, D_FF, UNTIED, SILU, ALL_BIASED, Rope(), NO_WINDOW, Always("norm_position", "post"),
        Always("qk_norm", "projection"),
    ),
    layout=Layout(TRUNK, POST_NORMS | ATTENTION | BIASES | QK_NORM | FEED_FORWARD),
    defaults=class_defaults(50_304, 4096, 11_008, 32, 32, None, 2048, 1e-5),
)  # fmt: skip
