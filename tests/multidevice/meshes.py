"""Models that have every feature of a layer between them, and the meshes of eight devices they are tested on.

They have what Gemma 3, OLMo 2, gpt-oss and DeepSeek V3 have. Each kind of model meets every mesh axis, and each pair of
axes meets on some mesh: the six axes are cut into two meshes of three in four ways. The slow tests have seven of these,
`long` one of the experts', whose axes latents meet as well, and a model with a dense layer first, since no other shares
its single device; `matrix` has every model on every mesh, and axes of more than two devices.
"""

from itertools import product
from typing import Any

import pytest

from lifecycle.model.config import MlaConfig, ModelConfig, MoeConfig, RopeScaling

# Every count that an axis cuts is a multiple of eight, so that each axis alone can have all devices; four layers are
# two periods of the pattern, one for each of two stages.
DENSE = ModelConfig(  # what Gemma 3 has
    vocab_size=96, d_model=32, d_ff=64, num_layers=4, num_heads=16, num_kv_heads=8, head_dim=4, max_seq_len=32,
    layer_pattern=("local", "global"), window=9, qk_norm="head", compute_dtype="float32", tie_embeddings=True,
    local_rope_theta=1000.0, rope_scaling=RopeScaling(kind="linear", factor=8.0), norm_offset=1.0,
    norm_position="sandwich", use_embed_scale=True, activation="gelu", attention_scale=0.2, num_mtp_modules=1,
)  # fmt: skip
PROJECTION = ModelConfig(  # OLMo 2, biases and caps
    vocab_size=96, d_model=32, d_ff=64, num_layers=4, num_heads=8, num_kv_heads=8, head_dim=8, max_seq_len=32,
    layer_pattern=("local",), window=9, qk_norm="projection", compute_dtype="float32", norm_position="post",
    attention_bias="qkvo", attention_soft_cap=5.0, logits_soft_cap=3.0, use_sinks=True,
)  # fmt: skip
YARN = RopeScaling(kind="yarn", factor=8.0, original_max_seq_len=64, beta_fast=16.0, beta_slow=0.5, truncate=False)
EXPERTS = ModelConfig(  # gpt-oss
    vocab_size=96, d_model=32, d_ff=64, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=8, max_seq_len=32,
    layer_pattern=("local",), window=9, compute_dtype="float32", attention_bias="qkvo", use_sinks=True,
    activation="clamped", rope_scaling=YARN,
    moe=MoeConfig(num_experts=8, experts_per_token=2, d_ff=16, use_bias=True, balance_weight=0.01, z_weight=0.001),
)  # fmt: skip
LATENT = ModelConfig(  # DeepSeek V3
    vocab_size=96, d_model=32, d_ff=64, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=12, max_seq_len=32,
    compute_dtype="float32", rope_scaling=YARN.model_copy(update={"mscale": 0.7, "mscale_all_dim": 1.0}),
    mla=MlaConfig(q_lora_rank=16, kv_lora_rank=16, nope_head_dim=8, rope_head_dim=4, v_head_dim=8),
    moe=MoeConfig(
        num_experts=8, experts_per_token=2, d_ff=16, num_shared_experts=1, score="sigmoid", routed_scale=2.5,
        num_groups=4, groups_per_token=2, use_selection_bias=True, bias_rate=1e-3, balance_weight=0.01, z_weight=0.001,
    ),
)  # fmt: skip
# A dense layer before those with experts, which no pipeline can have; and two prediction modules.
DENSE_FIRST = LATENT.model_copy(
    update={
        "num_layers": 3,
        "moe": LATENT.moe and LATENT.moe.model_copy(update={"first_dense_layers": 1}),
        "num_mtp_modules": 2,
    }
)
RING = {"context_attention": "ring"}
MODELS = {
    "dense": DENSE,
    "dense ring": DENSE.model_copy(update=RING),
    "projection": PROJECTION,
    "projection ring": PROJECTION.model_copy(update=RING),
    "experts": EXPERTS,
    "latent": LATENT,
    "dense first": DENSE_FIRST,
}

type Case = tuple[str, dict[str, int]]  # a model and a mesh

PAIRWISE: list[Case] = [
    ("dense", {"replica": 2, "fsdp": 2, "tensor": 2}),
    ("projection", {"fsdp": 2, "expert": 2, "context": 2}),
    ("latent", {"stage": 2, "fsdp": 2, "tensor": 2}),
    ("dense", {"stage": 2, "expert": 2, "context": 2}),
    ("experts", {"expert": 2, "context": 2, "tensor": 2}),
    ("projection", {"replica": 2, "stage": 2, "tensor": 2}),
    ("latent", {"replica": 2, "expert": 2, "context": 2}),
]
LONG: list[Case] = [
    ("experts", {"replica": 2, "stage": 2, "fsdp": 2}),
    ("dense first", {"replica": 2, "expert": 2, "context": 2}),
]
LARGE: list[Case] = [("projection", {"stage": 4, "tensor": 2}), ("projection ring", {"fsdp": 2, "context": 4})]
FLAT = [
    *({axis: 8} for axis in ("replica", "fsdp", "expert", "tensor")),
    {"context": 4},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "context": 4},
    {"expert": 4, "fsdp": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2},
    {"expert": 2, "context": 2, "tensor": 2},
]
PIPELINES = [
    {"stage": 2},
    {"stage": 2, "fsdp": 4},
    {"stage": 2, "expert": 2, "tensor": 2},
    {"stage": 2, "context": 4},
    {"replica": 2, "stage": 2, "fsdp": 2},
    {"replica": 2, "stage": 2, "context": 2},
    {"stage": 2, "fsdp": 2, "expert": 2},
    {"stage": 2, "fsdp": 2, "context": 2},
]


def case_of(model: str, axes: dict[str, int], *marks: pytest.MarkDecorator) -> Any:
    """A test's parameters `model, axes`."""
    sizes = "-".join(f"{axis}{size}" for axis, size in axes.items())
    return pytest.param(model, axes, id=f"{model}-{sizes}", marks=marks)


def every_case() -> list[Any]:
    """The pairs as slow tests; large axes and the rest of the matrix by its mark."""
    matrix = [*product(MODELS, FLAT), *product(MODELS.keys() - {"dense first"}, PIPELINES)]
    rest = [*LARGE, *sorted((case for case in matrix if case not in PAIRWISE + LONG + LARGE), key=str)]
    slow = [case_of(*case, pytest.mark.slow) for case in PAIRWISE]
    long = [case_of(*case, pytest.mark.long) for case in LONG]
    others = [case_of(*case, pytest.mark.matrix) for case in rest]
    return [*slow, *long, *others]
